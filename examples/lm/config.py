"""Checks a config of examples/pretrain.py before anything expensive starts."""

from collections.abc import Iterator
from typing import Any, get_args

from flax import traverse_util

from examples.lm import Config, tokenizer
from examples.lm.attention import Implementation
from examples.lm.errors import UserError
from examples.lm.model import Remat

_CHOICES = {
    "model.attention": get_args(Implementation),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": get_args(Remat),
    "tables.optimizer": ("ember", "adam", "adafactor", "sgd"),
    "body.optimizer": ("adamw", "muon"),
    "data.dtype": (None, "uint16", "uint32"),
}
_FRACTIONS = ("warmup_ratio", "final_lr_ratio")
_MAY_BE_NOT_POSITIVE = (
    *("seed", "mesh.", "head_init", "weight_decay", "b1", "b2"),
    *_FRACTIONS,
)


def flat(config: Config) -> dict[str, Any]:
    """Returns the values of a config by dotted name."""
    return traverse_util.flatten_dict(config.to_dict(), sep=".")


def resolve(config: Config) -> None:
    """Sets the size of the vocabulary, and checks the config.

    Raises:
      UserError: with a line for each mistake.
    """
    if path := config.data.tokenizer:
        size = tokenizer.load(path).vocab_size
        if config.data.vocab_size not in (None, size):
            raise UserError(
                f"config.data.vocab_size is {config.data.vocab_size}, but the tokenizer"
                f" {path} has {size} tokens: leave one of the two out."
            )
        config.data.vocab_size = size
    if mistakes := list(_mistakes(config)):
        raise UserError("\n".join(mistakes))


def _mistakes(config: Config) -> Iterator[str]:
    values, model = flat(config), config.model
    for name, options in _CHOICES.items():
        if values[name] not in options:
            listed = ", ".join(map(str, options))
            yield f"config.{name} is {values[name]!r}, but must be one of {listed}."
    for name, value in values.items():
        if type(value) in (int, float):
            if name in _FRACTIONS and not 0 <= value < 1:
                yield f"config.{name} is {value}, but must be from 0 to 1, without 1."
            if not (value > 0 or any(x in name for x in _MAY_BE_NOT_POSITIVE)):
                yield f"config.{name} is {value}, but must be positive."
    if not config.data.vocab_size:
        yield "Give config.data.tokenizer, or config.data.vocab_size without one."
    if model.width % (2 * model.heads):
        yield (
            f"config.model.heads is {model.heads} and config.model.width {model.width},"
            f" but the width of a head, {model.width / model.heads:g}, must be an even"
            " whole number for rotary positions."
        )
    for name, whole, part in (
        ("model.heads", model.heads, "model.kv_heads"),
        ("sequence_length", config.sequence_length, "loss_chunks"),
        ("batch_size", config.batch_size, "accumulate_steps"),
    ):
        if values[part] and whole % values[part]:
            yield (
                f"config.{part} is {values[part]}, but must divide config.{name}, which"
                f" is {whole}."
            )
    n_sources = len((config.data.path or "").split(","))
    if len(config.data.weights) not in (0, n_sources):
        yield (
            f"config.data.weights has {len(config.data.weights)} numbers, but"
            f" config.data.path has {n_sources} parts."
        )
    if model.tie_embeddings and config.tables.embed_learning_rate is not None:
        yield (
            "With config.model.tie_embeddings the table is a head: give"
            " config.tables.head_learning_rate instead of embed_learning_rate."
        )
    if config.resume and config.overwrite:
        yield (
            "config.resume continues a run and config.overwrite deletes it: give only"
            " one of them."
        )
