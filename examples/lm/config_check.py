"""Whether a config of examples/pretrain.py makes sense, before anything runs.

`FIELDS` has a rule for each field; what concerns several of them follows below.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from examples.lm import Config, corpus, topology
from examples.lm.errors import UserError
from examples.lm.model import REMATS
from examples.lm.optimizer import BODIES, TABLES
from examples.lm.vocabulary import SMALLEST

_MESH = ("data", "fsdp", "tensor")


class Rule(NamedTuple):
    """What a field must be, for the program and for the user."""

    holds: Callable[[Any], bool]
    wanted: str


def integer(low: int, high: int = 2**31 - 1) -> Rule:
    def holds(value: Any) -> bool:
        return type(value) is int and low <= value <= high

    return Rule(holds, f"a whole number from {low} to {high:,}")


def _number(holds: Callable[[float], bool], wanted: str) -> Rule:
    return Rule(lambda x: type(x) in (int, float) and holds(x), f"a number {wanted}")


def _choice(*options: str) -> Rule:
    listed = ", ".join(options)
    return Rule(lambda x: isinstance(x, str) and x in options, f"one of {listed}")


def optional(rule: Rule) -> Rule:
    return Rule(lambda x: x is None or rule.holds(x), f"{rule.wanted}, or left out")


def _is_axes(value: Any) -> bool:
    axes = value.split(",") if isinstance(value, str) and value else []
    return value == ",".join(axes) and set(axes) <= {*_MESH} and _distinct(axes)


def _distinct(names: list[str]) -> bool:
    return len(names) == len(set(names))


POSITIVE = _number(lambda x: 0 < x < math.inf, "greater than 0")
NOT_NEGATIVE = _number(lambda x: 0 <= x < math.inf, "of 0 or more")
FRACTION = _number(lambda x: 0 <= x < 1, "from 0 to 1, without 1")
COUNT = integer(1)
# Far above any model of today. Beyond, native code ends the process without a word,
# as its sizes overflow or the system runs out of memory.
BATCH = integer(1, 2**20)
_WIDTH = integer(1, 2**20)
_VOCABULARY = 2**24
SEED = integer(0)
FLAG = Rule(lambda x: type(x) is bool, "true or false")
TEXT = Rule(
    lambda x: isinstance(x, str) and bool(x.strip()) and "\0" not in x, "a path"
)
_AXES = Rule(_is_axes, f"some of {', '.join(_MESH)}, once each, with commas, or empty")
_SIZE = Rule(lambda x: x == -1 or COUNT.holds(x), "a whole number from 1 up, or -1")

OPTIMIZER_FIELDS = {
    "tables.optimizer": _choice(*TABLES),
    "tables.embed_learning_rate": optional(POSITIVE),
    "tables.head_learning_rate": optional(POSITIVE),
    "tables.b2": optional(FRACTION),
    "tables.weight_decay": NOT_NEGATIVE,
    **{f"tables.tuned.{name}.embed": POSITIVE for name in TABLES},
    **{f"tables.tuned.{name}.head": POSITIVE for name in TABLES},
    "tables.tuned.ember.b2": optional(FRACTION),
    "tables.tuned.adam.b1": FRACTION,
    "tables.tuned.adam.b2": FRACTION,
    "tables.tuned.adam_no_momentum.b2": FRACTION,
    "body.optimizer": _choice(*BODIES),
    "body.learning_rate": optional(POSITIVE),
    "body.weight_decay": NOT_NEGATIVE,
    **{f"body.tuned.{name}": POSITIVE for name in BODIES},
    "warmup_fraction": FRACTION,
    "final_fraction": _number(lambda x: 0 <= x <= 1, "from 0 to 1"),
    "clip_norm": _number(lambda x: x > 0, "greater than 0; inf clips nothing"),
}
DATA_FIELDS = {
    "data.path": optional(TEXT),
    "data.vocab_size": integer(SMALLEST, _VOCABULARY),
    "data.validation_fraction": FRACTION,
    "data.split_seed": SEED,
    "data.cache_dir": TEXT,
}
FIELDS = {
    **OPTIMIZER_FIELDS,
    **DATA_FIELDS,
    "seed": SEED,
    "steps": COUNT,
    "batch_size": BATCH,
    "sequence_length": COUNT,
    "model.width": _WIDTH,
    "model.layers": integer(1, 2**10),
    "model.heads": COUNT,
    "model.mlp_width": _WIDTH,
    "model.kv_heads": optional(COUNT),
    "model.rope_base": POSITIVE,
    "model.tied": FLAG,
    "model.vocab_multiple": integer(1, _VOCABULARY),
    "model.scan": FLAG,
    "model.remat": _choice(*REMATS),
    "model.dtype": _choice("float32", "bfloat16"),
    "loss_chunks": COUNT,
    **{f"mesh.{axis}": _SIZE for axis in _MESH},
    "axis_rules.batch": _AXES,
    "axis_rules.vocab": _AXES,
    "axis_rules.table_width": _AXES,
    "axis_rules.logits": _AXES,
    "axis_rules.embed": _AXES,
    "axis_rules.heads": _AXES,
    "axis_rules.mlp": _AXES,
    "axis_rules.layers": _AXES,
    "axis_rules.norm": _AXES,
    "eval_every": COUNT,
    "eval_batches": COUNT,
    "checkpoint_every": COUNT,
    "keep_checkpoints": COUNT,
    "tensorboard": FLAG,
    "compile_topology": optional(TEXT),
    "workdir": TEXT,
    "resume": FLAG,
    "overwrite": FLAG,
}
# Logical axes of one array, which can share no axis of the mesh.
_ARRAYS = [
    ("vocab", "table_width"),
    ("layers", "embed", "heads"),
    ("layers", "embed", "mlp"),
    ("layers", "norm"),
    ("batch", "logits"),
]


def check(config: Config, compare: bool = False) -> None:
    """Raises UserError, with a line for each mistake.

    Args:
      config: of examples/pretrain.py.
      compare: whether a second arm has AdamW on its tables.
    """
    mistakes = field_mistakes(config, FIELDS)
    if not mistakes:
        mistakes = [*_relations(config)]
        if compare and config.tables.optimizer == "adam":
            mistakes.append(
                "--compare adds a run with config.tables.optimizer adam, which it is"
                " already: leave out one of the two."
            )
    if mistakes:
        raise UserError("\n".join(mistakes))
    if config.compile_topology:
        topology.hbm_bytes(config.compile_topology)
        return
    corpus.find_files(config.data.path)
    check_writable("workdir", config.workdir)
    check_writable("data.cache_dir", config.data.cache_dir)


def field_mistakes(config: Config, rules: dict[str, Rule]) -> list[str]:
    """Returns a line for each field that is missing, unknown or breaks its rule."""
    fields = flat(config.to_dict())
    mistakes = [
        f"config.{name} is missing: it must be {rule.wanted}."
        for name, rule in rules.items()
        if name not in fields and not _has_no_tuned(fields, name)
    ]
    for name, value in fields.items():
        if name not in rules:
            mistakes.append(f"config.{name} is {value!r}, but no field has that name.")
        elif not rules[name].holds(value):
            wanted = rules[name].wanted
            mistakes.append(f"config.{name} is {value!r}, but must be {wanted}.")
    return mistakes


def _has_no_tuned(fields: Iterable[str], name: str) -> bool:
    """Whether a field is of an optimizer that no field has tuned settings of."""
    group, tuned, setting = name.partition(".tuned.")
    optimizer = f"{group}{tuned}{setting.partition('.')[0]}."
    return bool(tuned) and not any(f"{x}.".startswith(optimizer) for x in fields)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested dicts by dotted name."""
    values = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        values |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return values


def _relations(config: Config) -> Iterator[str]:
    model = config.model
    yield from optimizer_mistakes(config, model.tied)
    if model.width % (2 * model.heads):
        yield (
            f"config.model.heads is {model.heads} and config.model.width"
            f" {model.width}, but the width of a head, {model.width / model.heads:g},"
            " must be an even whole number for rotary positions."
        )
    if model.heads % (model.kv_heads or 1):
        yield (
            f"config.model.kv_heads is {model.kv_heads}, but must divide"
            f" config.model.heads, which is {model.heads}."
        )
    if config.sequence_length % config.loss_chunks:
        yield (
            f"config.loss_chunks is {config.loss_chunks}, but must divide"
            f" config.sequence_length, which is {config.sequence_length}."
        )
    if list(config.mesh.values()).count(-1) > 1:
        yield (
            f"config.mesh is {config.mesh.to_dict()}, but only one axis may be -1, for"
            " the devices that remain."
        )
    for names in _ARRAYS:
        axes = [a for n in names for a in config.axis_rules[n].split(",") if a]
        if not _distinct(axes):
            rules = ", ".join(f"{n} {config.axis_rules[n]!r}" for n in names)
            yield (
                f"config.axis_rules has {rules}, but these are axes of one array and"
                " must be sharded over different axes of the mesh."
            )
    if config.resume and config.overwrite:
        yield (
            "config.resume goes on with a run and config.overwrite deletes it: give"
            " only one of them."
        )


def optimizer_mistakes(
    config: Config, tied: bool, prefix: str = "config."
) -> Iterator[str]:
    """Yields a line for each setting of the optimizers that contradicts another.

    Args:
      config: of the optimizers.
      tied: whether the model has one table for embedding and head.
      prefix: of the names of fields in messages.
    """
    name = config.tables.optimizer
    if name not in config.tables.tuned:
        yield f"{prefix}tables.tuned has no {name}, which is tables.optimizer."
    elif config.tables.b2 is not None and "b2" not in config.tables.tuned[name]:
        yield f"{prefix}tables.b2 is {config.tables.b2}, but {name} has no b2."
    if tied and config.tables.embed_learning_rate is not None:
        yield (
            f"{prefix}tables.embed_learning_rate is"
            f" {config.tables.embed_learning_rate}, but the tables are tied and have"
            f" only {prefix}tables.head_learning_rate: give that."
        )
    if config.body.optimizer not in config.body.tuned:
        yield (
            f"{prefix}body.tuned has no {config.body.optimizer}, which is"
            " body.optimizer."
        )
    if round(config.warmup_fraction * config.steps) >= config.steps:
        yield (
            f"{prefix}warmup_fraction is {config.warmup_fraction}, which is all of"
            f" {config.steps} steps: lower it."
        )


def check_writable(name: str, path: str) -> None:
    """Makes a directory, and raises UserError if no file can be written there."""
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        reason = error.strerror
        if any(p.exists() and not p.is_dir() for p in (directory, *directory.parents)):
            reason = "Not a directory"
        raise UserError(
            f"config.{name} is {path!r}, where no files can be written: {reason}."
            " Give another directory."
        ) from error
