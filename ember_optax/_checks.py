"""What bad input gets: an early ValueError that names the parameter and the way out."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ember_optax import _rule
from ember_optax._paths import quoted
from ember_optax._rule import TableMoments

Scalar = float | jax.Array

VocabAxis = int | Mapping[str, int] | None
"""The token axis of every table, or of tables by path; None for the longest axis."""


def check_hyperparameters(b2: Scalar, eps: Scalar, column_mean: str) -> None:
    """Raises ValueError for hyperparameters that `scale_by_ember` cannot use.

    Values that are being traced cannot be checked, their types can.
    """
    _check_number("b2", b2)
    _check_number("eps", eps)
    # A Python number has no width of its own: it takes that of the state.
    if jnp.result_type(b2) in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"b2 is {jnp.result_type(b2)}, which cannot hold a decay close to 1"
            " (bfloat16 rounds 0.999 to 1), but it must be at least float32. With"
            " optax.inject_hyperparams, pass hyperparam_dtype=jnp.float32."
        )
    if _is_known(b2) and not 0 <= b2 < 1:
        raise ValueError(f"b2 is {b2}, but a decay must lie in [0, 1): try 0.999.")
    if _is_known(eps) and not eps >= 0:
        raise ValueError(f"eps is {eps}, but it must not be negative: try 1e-8.")
    if column_mean not in ("all", "active"):
        raise ValueError(
            f"column_mean is {column_mean!r}, but it must be 'all' (every row, the"
            " default) or 'active' (rows with a gradient)."
        )


def check_row_state(row_state: str) -> None:
    """Raises ValueError for an unknown `row_state`."""
    if row_state not in ("replicated", "sharded"):
        raise ValueError(
            f"row_state is {row_state!r}, but it must be 'replicated' (the default) or"
            " 'sharded' (as the rows of the tables)."
        )


def check_vocab_axis(vocab_axis: VocabAxis) -> None:
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


def check_axis_names(axis_names: Any, vocab_axis: VocabAxis) -> None:
    """Raises ValueError for `axis_names` that are no pair or lack a `vocab_axis`."""
    if axis_names is None:
        return
    if not isinstance(axis_names, tuple) or len(axis_names) != 2:
        raise ValueError(
            f"axis_names is {axis_names!r}, but it must be a pair: mesh axes of the"
            ' rows and of the columns, such as ("fsdp", None).'
        )
    if vocab_axis is None:
        raise ValueError(
            f"axis_names is {axis_names!r} without a vocab_axis, but the longest axis"
            " of a shard need not be that of the tokens: pass vocab_axis as well."
        )


def check_weight_decay(weight_decay: Scalar, name: str = "weight_decay") -> None:
    """Raises ValueError for a weight decay that is negative or no number."""
    _check_number(name, weight_decay)
    if _is_known(weight_decay) and not weight_decay >= 0:
        raise ValueError(
            f"{name} is {weight_decay}, but it must not be negative: a positive"
            " one shrinks the tables."
        )


def _check_number(name: str, x: Any) -> None:
    if not isinstance(x, Real) and getattr(x, "shape", None) != ():
        raise ValueError(
            f"{name} is {x!r}, but it must be one number. For a schedule of it, use"
            " optax.inject_hyperparams."
        )


def _is_known(x: Scalar) -> bool:
    """Whether a hyperparameter has a value before the program runs."""
    return not isinstance(x, Tracer)


def vocab_axes(
    leaves: Sequence[tuple[str, Any]], vocab_axis: VocabAxis
) -> dict[str, int]:
    """Returns the token axis of each table, by path.

    Args:
      leaves: (path, array) of every table.
      vocab_axis: as given to `scale_by_ember`.

    Raises:
      ValueError: a leaf is no table, or `vocab_axis` does not fit the tables.
    """
    axes = {}
    for path, leaf in leaves:
        _check_table(path, leaf)
        if path in axes:
            raise ValueError(
                f"Two tables are called {quoted(path)} once `.value` and `~` are"
                " dropped from their paths, but the state needs a name for each. Rename"
                " one of them."
            )
        axis = vocab_axis.get(path) if isinstance(vocab_axis, Mapping) else vocab_axis
        if axis is None:
            axis = _rule.longest_axis(leaf.shape)
        elif not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(
                f"vocab_axis is {axis} for {quoted(path)}, but that table has the shape"
                f" {leaf.shape}: give one of its {leaf.ndim} axes."
            )
        axes[path] = axis % leaf.ndim
    if isinstance(vocab_axis, Mapping) and leaves:
        unknown = vocab_axis.keys() - axes.keys()
        if unknown:
            raise ValueError(
                f"vocab_axis names {_listed(unknown)}, but the tables are"
                f" {_listed(axes)}. Give each transformation the axes of its own"
                " tables, by the paths that ember_optax.summarize prints."
            )
    return axes


def check_state(state: Any, expected: type) -> None:
    """Raises ValueError for the state of another transformation."""
    if not isinstance(state, expected):
        raise ValueError(
            f"update got a state of type {type(state).__name__}, but an"
            f" {expected.__name__} is needed: pass what init or the last update of the"
            " same transformation returned."
        )


def check_gradients(
    leaves: Sequence[tuple[str, Any]],
    axes: Mapping[str, int],
    tables: Mapping[str, TableMoments],
) -> None:
    """Raises ValueError for gradients that do not belong to the state."""
    missing = tables.keys() - axes.keys()
    if missing:
        raise ValueError(
            f"The state holds the moments of {_listed(missing)}, but the gradients are"
            f" of {_listed(axes)}. The state is of another model, or the labels"
            " changed: call init again with these parameters."
        )
    for path, grad in leaves:
        if path not in tables:
            raise ValueError(
                f"There is a gradient of {quoted(path)}, but the state holds the"
                f" moments of {_listed(tables)}. The state is of another model, or the"
                " labels changed: call init again with these parameters."
            )
        axis = axes[path]
        columns = grad.shape[:axis] + grad.shape[axis + 1 :]
        row, col = tables[path]
        if (row.shape, col.shape) != ((grad.shape[axis],), columns):
            raise ValueError(
                f"The gradient of {quoted(path)} has the shape {grad.shape}, but the"
                f" state holds a row of {row.shape} and a col of {col.shape}, where"
                f" ({grad.shape[axis]},) and {columns} were expected. After a change of"
                " the vocabulary or the width, call init again."
            )


def axis_of_tokens(path: str, shape: tuple[int, ...], moments: TableMoments) -> int:
    """Returns the axis of a table that its `row` belongs to.

    Of several that fit, as in a square table, the first.

    Raises:
      ValueError: none fits.
    """
    row, col = moments
    for axis, size in enumerate(shape):
        if ((size,), shape[:axis] + shape[axis + 1 :]) == (row.shape, col.shape):
            return axis
    raise ValueError(
        f"{quoted(path)} has the shape {shape}, but its state is a row of {row.shape}"
        f" and a col of {col.shape}. Give the state and the parameters of one model."
    )


def _check_table(path: str, leaf: Any) -> None:
    way_out = (
        "Only token tables belong to Ember: route everything else to another optimizer"
        " with optax.multi_transform and ember_optax.label_token_tables."
    )
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        found = f"a {type(leaf).__name__}"
        raise ValueError(
            f"{quoted(path)} is {found}, but Ember needs an array. {way_out}"
        )
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(
            f"{quoted(path)} has the dtype {leaf.dtype}, but Ember needs floating-point"
            f" numbers. {way_out}"
        )
    if leaf.ndim < 2:
        raise ValueError(
            f"{quoted(path)} has the shape {leaf.shape}, but Ember needs a table: one"
            f" axis for tokens and at least one more. {way_out}"
        )
    if 0 in leaf.shape:
        raise ValueError(
            f"{quoted(path)} has the shape {leaf.shape}, but Ember needs axes that are"
            " not empty. Remove the parameter, or give it its size."
        )


def _listed(paths: Iterable[str]) -> str:
    return ", ".join(sorted(map(quoted, paths))) or "no table"
