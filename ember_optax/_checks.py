"""Input validation: an early ValueError that names the parameter and how to fix it."""

import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from ember_optax._paths import listed, path_from_key, quoted, state_key


def check_hyperparameters(b2: Any, eps: Any) -> None:
    """Raises ValueError for hyperparameters that `scale_by_ember` cannot use.

    Values that are being traced cannot be checked, but their types can. A schedule is
    checked at step 0.
    """
    if not callable(b2):
        check_b2(b2)
    _check_number("eps", eps)
    if _is_known(eps) and not float(eps) > 0:
        raise ValueError(f"eps must be positive, got {eps}. The usual value is 1e-8.")


def check_b2(b2: Any) -> None:
    """Raises ValueError unless `b2` is a valid decay."""
    _check_number("b2", b2, or_schedule=True)
    # Python scalars are weakly typed and adopt the state's dtype.
    if jnp.result_type(b2) in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"b2 is {jnp.result_type(b2)}, which cannot hold a decay close to 1"
            " (bfloat16 rounds 0.999 to 1), but it must be at least float32. With"
            " optax.inject_hyperparams, pass hyperparam_dtype=jnp.float32."
        )
    if _is_known(b2) and not 0 <= float(b2) < 1:
        raise ValueError(f"b2 must be in [0, 1), got {b2}. The usual value is 0.999.")


def check_constant(b2: Any) -> None:
    """Raises ValueError for a schedule where rows must catch up with many steps."""
    if callable(b2):
        raise ValueError(
            f"b2 must be one number for all steps, such as 0.99, got the schedule"
            f" {b2!r}. Only ember_optax.ember supports schedules."
        )


def check_axis_names(axis_names: Any, vocab_axis: Any) -> None:
    """Raises ValueError unless `axis_names` is a pair with a `vocab_axis`."""
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


def check_learning_rate(name: str, learning_rate: Any) -> None:
    """Raises ValueError unless a rate is a schedule or a number, not negative."""
    if not callable(learning_rate):
        _check_number(name, learning_rate, or_schedule=True)
        _check_not_negative(name, learning_rate)


def check_pattern(argument: str, pattern: Any) -> None:
    """Raises ValueError unless `pattern` is a regular expression that is not empty."""
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(
            f"{argument} needs a regular expression that is not empty, got {pattern!r}."
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{argument}: {pattern!r} is not a valid regular expression: {error}. To"
            " match a path literally, pass re.escape(path)."
        ) from error


def check_weight_decay(weight_decay: Any, name: str = "weight_decay") -> None:
    """Raises ValueError unless a weight decay is a number that is not negative."""
    _check_number(name, weight_decay)
    _check_not_negative(name, weight_decay)


def check_max_norm(max_norm: Any) -> None:
    """Raises ValueError unless a norm is a positive number."""
    _check_number("max_norm", max_norm)
    if _is_known(max_norm) and not float(max_norm) > 0:
        raise ValueError(
            f"max_norm must be positive, got {max_norm}. The usual value is 1.0."
        )


def check_seed(seed: Any) -> None:
    """Raises ValueError for a seed that does not fit 32 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an int in [0, 2^32), got {seed!r}.")


def _check_number(name: str, x: Any, *, or_schedule: bool = False) -> None:
    is_array = getattr(x, "shape", None) == () and jnp.issubdtype(x.dtype, jnp.number)
    if isinstance(x, bool) or not (isinstance(x, Real) or is_array):
        way_out = (
            "a number or a schedule from the count of steps to one"
            if or_schedule
            else "one number (for a schedule of it, use optax.inject_hyperparams)"
        )
        raise ValueError(f"{name} must be {way_out}, got {x!r}.")


def _check_not_negative(name: str, x: Any) -> None:
    if _is_known(x) and not float(x) >= 0:
        raise ValueError(f"{name} must not be negative, got {x}.")


def _is_known(x: Any) -> bool:
    """Tells whether a hyperparameter has a value before the program runs.

    Its comparison then needs `float`: JAX traces all operations on arrays.
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
    known = listed(map(path_from_key, tables))
    if missing := tables.keys() - set(map(state_key, grads)):
        raise ValueError(
            "The state holds the moments of"
            f" {listed(map(path_from_key, missing))}, but the gradients are of"
            f" {listed(grads)}. The state belongs to another model, or the"
            " labels changed: call init again with these parameters."
        )
    for path, grad in grads.items():
        if state_key(path) not in tables:
            raise ValueError(
                f"There is a gradient of {quoted(path)}, but the state holds the"
                f" moments of {known}. The state belongs to another model, or the"
                " labels changed: call init again with these parameters."
            )
        axis = axes[path]
        columns = grad.shape[:axis] + grad.shape[axis + 1 :]
        row, col = tables[state_key(path)]
        if (row.shape, col.shape) != ((grad.shape[axis],), columns):
            raise ValueError(
                f"The gradient of {quoted(path)} has the shape {grad.shape}, but the"
                f" state holds a row of {row.shape} and a col of {col.shape}, where"
                f" ({grad.shape[axis]},) and {columns} were expected. After a change of"
                " the vocabulary, use resize_vocab; after a change of the width, call"
                " init again."
            )


def check_table(path: str, leaf: Any) -> None:
    """Raises ValueError unless a leaf can be a token table."""
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
