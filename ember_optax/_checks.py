"""What bad input gets: an early ValueError that names the parameter and the way out."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from ember_optax._paths import from_key, listed, quoted, to_key


def check_hyperparameters(b2: Any, eps: Any, column_mean: Any) -> None:
    """Raises ValueError for hyperparameters that `scale_by_ember` cannot use.

    Values that are being traced cannot be checked, their types can. A schedule is
    checked where its values are.
    """
    if not callable(b2):
        check_b2(b2)
    _check_number("eps", eps)
    if _is_known(eps) and not float(eps) >= 0:
        raise ValueError(f"eps is {eps}, but it must not be negative: try 1e-8.")
    if column_mean not in ("all", "active"):
        raise ValueError(
            f"column_mean is {column_mean!r}, but it must be 'all' (every row, the"
            " default) or 'active' (rows with a gradient)."
        )


def check_b2(b2: Any) -> None:
    """Raises ValueError for what is no decay."""
    _check_number("b2", b2, or_schedule=True)
    # A Python number has no width of its own: it takes that of the state.
    if jnp.result_type(b2) in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"b2 is {jnp.result_type(b2)}, which cannot hold a decay close to 1"
            " (bfloat16 rounds 0.999 to 1), but it must be at least float32. With"
            " optax.inject_hyperparams, pass hyperparam_dtype=jnp.float32."
        )
    if _is_known(b2) and not 0 <= float(b2) < 1:
        raise ValueError(f"b2 is {b2}, but a decay must lie in [0, 1): try 0.999.")


def check_constant(b2: Any) -> None:
    """Raises ValueError for a schedule where rows must catch up with many steps."""
    if callable(b2):
        raise ValueError(
            f"b2 is the schedule {b2!r}, but here it must be one number for all steps,"
            " such as 0.99: only ember_optax.ember takes a schedule."
        )


def check_row_state(row_state: str) -> None:
    """Raises ValueError for an unknown `row_state`."""
    if row_state not in ("replicated", "sharded"):
        raise ValueError(
            f"row_state is {row_state!r}, but it must be 'replicated' (the default) or"
            " 'sharded' (as the rows of the tables)."
        )


def check_axis_names(axis_names: Any, vocab_axis: Any) -> None:
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


def check_learning_rate(learning_rate: Any) -> None:
    """Raises ValueError for what is neither a number nor a schedule."""
    if not callable(learning_rate):
        _check_number("learning_rate", learning_rate, or_schedule=True)


def check_weight_decay(weight_decay: Any, name: str = "weight_decay") -> None:
    """Raises ValueError for a weight decay that is negative or no number."""
    _check_number(name, weight_decay)
    if _is_known(weight_decay) and not float(weight_decay) >= 0:
        raise ValueError(
            f"{name} is {weight_decay}, but it must not be negative: a positive"
            " one shrinks the tables."
        )


def check_max_norm(max_norm: Any) -> None:
    """Raises ValueError for a norm that is no positive number."""
    _check_number("max_norm", max_norm)
    if _is_known(max_norm) and not float(max_norm) > 0:
        raise ValueError(f"max_norm is {max_norm}, but it must be positive: try 1.0.")


def check_seed(seed: Any) -> None:
    """Raises ValueError for a seed that does not fit 32 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}, but it must be an int in [0, 2^32).")


def _check_number(name: str, x: Any, *, or_schedule: bool = False) -> None:
    is_array = getattr(x, "shape", None) == () and jnp.issubdtype(x.dtype, jnp.number)
    if isinstance(x, bool) or not (isinstance(x, Real) or is_array):
        way_out = (
            "a number, or a schedule from the count of steps to one"
            if or_schedule
            else "one number. For a schedule of it, use optax.inject_hyperparams"
        )
        raise ValueError(f"{name} is {x!r}, but it must be {way_out}.")


def _is_known(x: Any) -> bool:
    """Whether a hyperparameter has a value before the program runs.

    Comparing it then needs `float`: JAX traces all operations on arrays, known or not.
    """
    return not isinstance(x, Tracer)


def check_state(state: Any, expected: type) -> None:
    """Raises ValueError for the state of another transformation."""
    if not isinstance(state, expected):
        raise ValueError(
            f"update got a state of type {type(state).__name__}, but an"
            f" {expected.__name__} is needed: pass what init or the last update of the"
            " same transformation returned."
        )


def check_gradients(
    grads: Mapping[str, Any], axes: Mapping[str, int], tables: Mapping[str, Any]
) -> None:
    """Raises ValueError for gradients that do not belong to the state.

    Args:
      grads: gradient of each table, by path.
      axes: the axis of each that holds the tokens.
      tables: `TableMoments` in the state, by key.
    """
    known = listed(map(from_key, tables))
    if missing := tables.keys() - set(map(to_key, grads)):
        raise ValueError(
            f"The state holds the moments of {listed(map(from_key, missing))}, but the"
            f" gradients are of {listed(grads)}. The state is of another model, or the"
            " labels changed: call init again with these parameters."
        )
    for path, grad in grads.items():
        if to_key(path) not in tables:
            raise ValueError(
                f"There is a gradient of {quoted(path)}, but the state holds the"
                f" moments of {known}. The state is of another model, or the"
                " labels changed: call init again with these parameters."
            )
        axis = axes[path]
        columns = grad.shape[:axis] + grad.shape[axis + 1 :]
        row, col = tables[to_key(path)]
        if (row.shape, col.shape) != ((grad.shape[axis],), columns):
            raise ValueError(
                f"The gradient of {quoted(path)} has the shape {grad.shape}, but the"
                f" state holds a row of {row.shape} and a col of {col.shape}, where"
                f" ({grad.shape[axis]},) and {columns} were expected. After a change of"
                " the vocabulary, use resize_vocab; after a change of the width, call"
                " init again."
            )


def check_table(path: str, leaf: Any) -> None:
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
