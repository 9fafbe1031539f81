"""The axis of a table that holds the tokens: the one place that decides it."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from ember_optax import _checks
from ember_optax._paths import listed, quoted

VocabAxis = int | Mapping[str, int] | None
"""The token axis of every table, or of tables by path; None for the longest axis."""


def check_vocab_axis(vocab_axis: Any) -> None:
    """Raises ValueError for a `vocab_axis` that is not made of ints."""
    if vocab_axis is None:
        return
    axes = vocab_axis.values() if isinstance(vocab_axis, Mapping) else [vocab_axis]
    for axis in axes:
        if not isinstance(axis, Integral) or isinstance(axis, bool):
            raise ValueError(
                f"vocab_axis is {vocab_axis!r}, but it must be an int, or a mapping"
                " from paths of tables to ints. With optax.inject_hyperparams, which"
                " makes arrays of ints, pass static_args=('vocab_axis',)."
            )


def token_axes(tables: Mapping[str, Any], vocab_axis: VocabAxis) -> dict[str, int]:
    """Finds the token axis of each table, by path.

    It is `vocab_axis` where that is given, else the longest axis, the first of equals.

    Args:
      tables: array, or anything with a shape and a dtype, by path.
      vocab_axis: the argument of `scale_by_ember`.

    Raises:
      ValueError: a leaf is not a table, or `vocab_axis` does not fit the tables.
    """
    for path, table in tables.items():
        _checks.check_table(path, table)
    given = _by_path(tables, vocab_axis)
    if tables and (unknown := given.keys() - tables.keys()):
        raise ValueError(
            f"vocab_axis names {listed(unknown)}, but the tables are {listed(tables)}."
            " Give each transformation the axes of its own tables, by the paths that"
            " ember_optax.summarize prints."
        )
    return {
        path: _checked(path, table.shape, given[path])
        if path in given
        else longest_axis(table.shape)
        for path, table in tables.items()
    }


def axis_of_state(
    path: str, shape: tuple[int, ...], moments: Any, vocab_axis: VocabAxis
) -> int:
    """Finds the axis of a table that the `row` of an existing state belongs to.

    Args:
      path: path of the table.
      shape: shape of the table.
      moments: `TableMoments` of the table, or their shapes.
      vocab_axis: `vocab_axis` of the optimizer that the state belongs to.

    Raises:
      ValueError: the state fits no axis, or not the given one, or it fits several and
        none is given.
    """
    row, col = moments
    fitting = [
        axis
        for axis, size in enumerate(shape)
        if ((size,), (*shape[:axis], *shape[axis + 1 :])) == (row.shape, col.shape)
    ]
    given = _by_path({path: None}, vocab_axis)
    if path in given:
        fitting = [
            axis for axis in fitting if axis == _checked(path, shape, given[path])
        ]
    if not fitting:
        axis = f" with vocab_axis {given[path]}" if path in given else ""
        raise ValueError(
            f"{quoted(path)} has the shape {shape}{axis}, but its state is a row of"
            f" {row.shape} and a col of {col.shape}. Give the state, the parameters and"
            " the vocab_axis of one optimizer."
        )
    if len(fitting) > 1:
        raise ValueError(
            f"{quoted(path)} has the shape {shape}, and its state does not tell which"
            f" of the axes {fitting} holds the tokens: pass vocab_axis="
            f"{{{path!r}: {longest_axis(shape)}}}, or the axis that the optimizer was"
            " given."
        )
    return fitting[0]


def longest_axis(shape: tuple[int, ...]) -> int:
    """Finds the longest axis, the first of equals."""
    return max(range(len(shape)), key=shape.__getitem__)


def _by_path(paths: Mapping[str, Any], vocab_axis: VocabAxis) -> dict[str, int]:
    """Looks up the axes that are given, by path."""
    if vocab_axis is None:
        return {}
    if not isinstance(vocab_axis, Mapping):
        return dict.fromkeys(paths, vocab_axis)
    return dict(vocab_axis)


def _checked(path: str, shape: tuple[int, ...], axis: int) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"vocab_axis is {axis} for {quoted(path)}, but that table has the shape"
            f" {shape}: give one of its {len(shape)} axes."
        )
    return axis % len(shape)
