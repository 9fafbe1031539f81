"""Checks for every trainer: AdamW, then Ember, then Ember resumed from a checkpoint."""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import ember_optax

STEPS, SAVED = 12, 6
"""Steps of a run, and roughly the step of the checkpoint that it resumes from."""

MARGIN = 0.05
"""Smallest change of a loss that counts, in nats."""

LEARNING_RATE, EMBED_RATE, HEAD_RATE = 1e-2, 0.3, 0.03
"""Peaks of body, embedding and head in all runs."""

STATISTIC = re.compile(r"(^|\|)tables\|(?P<table>[^|]+)\|(?P<name>row|col)\b")


class Trained(NamedTuple):
    """Result of a training loop."""

    losses: list[float]
    params: Any
    opt_state: Any


def schedule(peak: float) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.0, peak, 2, STEPS)


SCHEDULES = schedule(LEARNING_RATE), schedule(EMBED_RATE), schedule(HEAD_RATE)


def freeze(tx: optax.GradientTransformation, path: str) -> optax.GradientTransformation:
    """Freezes the parameters in whose path the regular expression `path` matches."""

    def label(key_path: Any, _: Any) -> str:
        found = jax.tree_util.keystr(key_path, simple=True, separator="/")
        return "frozen" if re.search(path, found) else "trained"

    return optax.multi_transform(
        {"trained": tx, "frozen": optax.set_to_zero()},
        functools.partial(jax.tree_util.tree_map_with_path, label),
    )


def compare(
    train: Callable[[str, Path], Trained],
    drop_after: Callable[[Path], None],
    workdir: Path,
    vocab_size: int,
) -> dict[str, Any]:
    """Runs a trainer with AdamW, with Ember, and again from Ember's checkpoint.

    Args:
      train: trains STEPS steps, given `adamw` or `ember` and a folder; resumes from the
        last checkpoint there.
      drop_after: deletes the checkpoints after step SAVED from that folder.
      workdir: an empty folder.
      vocab_size: number of tokens of the model.

    Returns:
      The measurements, as they are stored.
    """
    adamw = train("adamw", workdir / "adamw")
    check_falls("AdamW", adamw.losses)
    ember = train("ember", workdir / "ember")
    check_falls("Ember", ember.losses)
    tables = check_state(ember, vocab_size)
    kept = host((ember.params, ember.opt_state))

    drop_after(workdir / "ember")
    resumed = train("ember", workdir / "ember")
    if not 0 < len(resumed.losses) < STEPS:
        raise AssertionError(f"{len(resumed.losses)} steps after resuming.")
    expected = ember.losses[-len(resumed.losses) :]
    if resumed.losses != expected:
        raise AssertionError(f"Losses {resumed.losses} after resuming, not {expected}.")
    check_equal(kept, host((resumed.params, resumed.opt_state)))
    check_state(resumed, vocab_size)
    return {
        "losses": {"adamw": adamw.losses, "ember": ember.losses},
        "state_bytes": {
            "adamw": state_bytes(adamw.opt_state),
            "ember": state_bytes(ember.opt_state),
        },
        "tables": tables,
        "replicated": True,
        "restart": "bitwise",
    }


def check_switch(kept: list[float], switched: list[float]) -> dict[str, Any]:
    """Raises if the loss rises where Ember continues AdamW's checkpoint.

    Batches differ in difficulty, so the comparison is with AdamW on the same batch.

    Args:
      kept: all losses of the run that stays with AdamW.
      switched: losses after the change, the first of them before any step of Ember.

    Returns:
      The losses of both runs after the change.
    """
    kept = kept[-len(switched) :]
    if not np.isclose(switched[0], kept[0], rtol=1e-5):
        raise AssertionError(f"{switched[0]} after the change, {kept[0]} before.")
    if any(new > old + MARGIN for new, old in zip(switched, kept, strict=True)):
        raise AssertionError(f"A bump after the change: {switched} against {kept}.")
    return {"adamw": kept, "ember": switched}


def check_falls(name: str, losses: list[float]) -> None:
    """Raises unless the last loss is below the first by the margin."""
    if not losses or not losses[-1] < losses[0] - MARGIN:
        raise AssertionError(f"The loss with {name} does not fall: {losses}.")


def check_state(trained: Trained, vocab_size: int) -> dict[str, dict[str, Any]]:
    """Raises unless the state of each table is V + D numbers and replicated.

    Returns:
      Role and shape of each table by path.
    """
    found = statistics(trained.opt_state)
    labels = functools.partial(
        ember_optax.label_token_tables,
        vocab_size=vocab_size,
        embed="embed",
        head="head",
    )
    tables = ember_optax.summarize(trained.params, labels).tables
    if found.keys() != {state_key(table.path) for table in tables}:
        raise AssertionError(f"Ember has {sorted(found)}, but the tables are {tables}.")
    for table in tables:
        state = found[state_key(table.path)]
        length = max(table.shape)
        sizes = {"row": length, "col": table.size // length}
        if {name: x.size for name, x in state.items()} != sizes:
            raise AssertionError(f"{table.path} has {state}, expected sizes {sizes}.")
        if not all(x.sharding.is_fully_replicated for x in state.values()):
            raise AssertionError(f"The state of {table.path} is sharded: {state}.")
    return {t.path: {"role": t.role, "shape": list(t.shape)} for t in tables}


def state_key(path: str) -> str:
    """Returns the key of a table in Ember's state."""
    return path.replace("/", ":").replace(".", "::")


def statistics(opt_state: Any) -> dict[str, dict[str, jax.Array]]:
    """Returns `row` and `col` by the key of their table, in any container."""
    found: dict[str, dict[str, jax.Array]] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        path = jax.tree_util.keystr(key_path, simple=True, separator="|")
        if match := STATISTIC.search(path):
            found.setdefault(match["table"], {})[match["name"]] = leaf
    return found


def check_only_adamw(opt_state: Any) -> None:
    """Raises if Ember has the state of a table."""
    check_tables(opt_state)


def check_tables(opt_state: Any, *paths: str) -> None:
    """Raises unless Ember has the state of these tables and of no others."""
    found = statistics(opt_state)
    if found.keys() != set(map(state_key, paths)):
        trained = ", ".join(paths) or "no table"
        raise AssertionError(f"Ember has {sorted(found)}, but {trained} is trained.")


def check_labels(params: Any, vocab_size: int, *, by_name: bool) -> None:
    """Raises unless the leaves with an axis of `vocab_size` are tables, one a head.

    No other axis may have that size, so that it shows which names are tables.
    """
    labels = ember_optax.label_token_tables(
        params,
        embed="embed",
        head="head",
        vocab_size=None if by_name else vocab_size,
    )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    wrong = [
        jax.tree_util.keystr(key_path)
        for (key_path, leaf), label in zip(leaves, jax.tree.leaves(labels), strict=True)
        if (label != "body") != (len(leaf.shape) > 1 and max(leaf.shape) == vocab_size)
    ]
    n_heads = jax.tree.leaves(labels).count("head")
    if wrong or n_heads != 1:
        raise AssertionError(f"Wrong labels: {wrong}; {n_heads} heads.")


def check_families(
    build: Callable[[str], tuple[Any, int]], names: Iterable[str]
) -> dict[str, Any]:
    """Checks the labels of models.

    Args:
      build: returns shapes of the parameters and the size of the vocabulary, by name.
      names: names of the models.

    Returns:
      Lists of the models whose labels are right by name alone and with `vocab_size`, or
      only with it; by name, the wrong labels, or the error of the trainer's builder.
    """
    right, with_size, wrong, not_built = [], [], {}, {}
    for name in names:
        try:
            params, vocab_size = build(name)
        except Exception as error:  # trainers raise all kinds
            not_built[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        try:
            check_labels(params, vocab_size, by_name=False)
        except (AssertionError, ValueError) as error:
            wrong[name] = str(error)[:400]
            continue
        try:
            check_labels(params, vocab_size, by_name=True)
            right.append(name)
        except (AssertionError, ValueError):
            with_size.append(name)
    return {
        "right": right,
        "with_vocab_size": with_size,
        "wrong": wrong,
        "not_built": not_built,
    }


def host(tree: Any) -> dict[str, np.ndarray]:
    """Copies the arrays of a tree to host memory, by path."""
    return {
        jax.tree_util.keystr(key_path): np.array(leaf)
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def check_equal(first: Mapping[str, np.ndarray], second: Mapping[str, Any]) -> None:
    """Raises unless both have bitwise identical arrays."""
    if first.keys() != second.keys():
        raise AssertionError(f"Leaves differ: {first.keys() ^ second.keys()}.")
    other = [k for k, x in first.items() if x.tobytes() != second[k].tobytes()]
    if other:
        raise AssertionError(f"Not as in the uninterrupted run: {other}.")


def state_bytes(opt_state: Any) -> int:
    """Returns the bytes of a whole optimizer state, each array once."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(opt_state))


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the records by trainer."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["trainer"]: record for record in map(json.loads, lines)}


def write(path: Path, record: dict[str, Any], order: Iterable[str]) -> None:
    """Replaces the record of the same trainer."""
    by_name = read(path)
    by_name[record["trainer"]] = dict(record)
    kept = [by_name[name] for name in order if name in by_name]
    path.write_text("".join(json.dumps(found) + "\n" for found in kept))
