"""Optimizer states that follow a vocabulary as it grows, shrinks or is reordered."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from ember_optax._checks import axis_of_tokens
from ember_optax._convert._parts import (
    ByPath,
    Dense,
    Factored,
    map_parts,
    moments_by_path,
)
from ember_optax._ember import EmberState
from ember_optax._mesh import pin
from ember_optax._paths import by_path, quoted
from ember_optax._rule import TableMoments


def resize_vocab(
    opt_state: Any,
    old_params: Any,
    new_params: Any,
    *,
    tokens: ArrayLike | Mapping[str, ArrayLike] | None = None,
) -> Any:
    r"""Returns the optimizer state for tables with another vocabulary.

    A token that stays keeps its `row`, and takes the steps that it would have taken. A
    row of zero would give a new token a first step of up to :math:`1 / \sqrt{1 - b_2}`
    times the learning rate, 32 at `b2 = 0.999`. It gets the mean of all rows that have
    had a gradient, with which its first step is as large as those of other tokens.

    Args:
      opt_state: state of any optimizer with Ember in it. Every
        :class:`ember_optax.EmberState` is resized, and nothing else: moments that Adam
        has of other parameters stay as they are.
      old_params: the parameters that it belongs to; their shapes are enough.
      new_params: the parameters after the change; likewise. Their values are yours to
        choose.
      tokens: integers [new V], for each row the old one that it was, or -1 for a new
        token. An old row that is named twice is copied. Where tables have different
        vocabularies, a mapping from the path of a table to its integers. By default
        tokens were appended or dropped at the end.

    Returns:
      The state, with `row` of the new length.

    Raises:
      ValueError: there is no Ember in the state, a table is missing or has changed in
        more than its number of tokens, `tokens` do not fit, or Adam has moments of a
        parameter whose shape changes. Messages name the path of the parameter.

    Examples:
      >>> import jax.numpy as jnp, ember_optax
      >>> old = {"embed": jnp.array([[2., 0.], [0., 4.], [0., 0.]])}
      >>> tx = ember_optax.ember(1e-2, b2=0.5)
      >>> _, state = tx.update(old, tx.init(old), old)
      >>> new = {"embed": jnp.zeros((4, 2))}
      >>> resized = ember_optax.resize_vocab(state, old, new)
      >>> print(resized[0].tables["embed"].row)
      [1.  4.  0.  2.5]
    """
    old, new = by_path(old_params), by_path(new_params)
    _check(moments_by_path(opt_state), new, tokens)

    def resize(part: Any) -> Any:
        if not isinstance(part, EmberState):
            return part
        resized = {}
        for path, moments in part.tables.items():
            n_rows = _new_rows(path, moments, old, new)
            chosen = tokens.get(path) if isinstance(tokens, Mapping) else tokens
            ids = _checked_ids(path, chosen, moments.row.size, n_rows)
            resized[path] = _resize(moments, ids)
        return part._replace(tables=resized)

    return map_parts(resize, opt_state)


def _resize(moments: TableMoments, ids: ArrayLike) -> TableMoments:
    """Returns the moments of rows `ids`, -1 for one that has had no gradient yet."""
    spec = jax.typeof(moments.row).sharding.spec
    row = pin(moments.row, P(), None)
    ids = jnp.asarray(ids)
    # Of mean, median and lower quantiles of the rows, the mean comes closest to the
    # root mean square step of the tokens of a batch, for embeddings and for heads.
    seed = jnp.sum(row) / jnp.maximum(jnp.count_nonzero(row), 1).astype(row.dtype)
    new_row = jnp.where(ids < 0, seed, row[jnp.maximum(ids, 0)])
    # With both means equal, old tokens keep their vhat whichever of them is its scale.
    mean = jnp.mean(row)
    ratio = jnp.where(mean > 0, jnp.mean(new_row) / mean, 1)
    return TableMoments(pin(new_row, spec, None), moments.col * ratio)


def _new_rows(
    path: str, moments: TableMoments, old: Mapping[str, Any], new: Mapping[str, Any]
) -> int:
    """Returns the number of rows that a table has after the change."""
    for name, params in (("old_params", old), ("new_params", new)):
        if path not in params:
            raise ValueError(
                f"The state holds the moments of {quoted(path)}, but {name} has no such"
                " parameter. Give the parameters before and after the change in the"
                " container that the optimizer sees."
            )
    before, after = old[path].shape, new[path].shape
    axis = axis_of_tokens(path, before, moments)
    if (*before[:axis], *before[axis + 1 :]) != (*after[:axis], *after[axis + 1 :]):
        raise ValueError(
            f"{quoted(path)} had the shape {before} and has {after}, but only axis"
            f" {axis}, that of the tokens, may change. For another width, start anew"
            " with tx.init."
        )
    return after[axis]


def _checked_ids(path: str, tokens: Any, n_old: int, n_new: int) -> ArrayLike:
    """Returns the old row of each new one."""
    if tokens is None:
        ids = np.arange(n_new)
        return np.where(ids < n_old, ids, -1)
    ids = tokens if isinstance(tokens, Tracer) else np.asarray(tokens)
    if ids.shape != (n_new,) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"tokens are {ids.dtype}{list(ids.shape)}, but {quoted(path)} has {n_new}"
            " rows now: give an integer for each. For tables with different"
            " vocabularies, give a mapping from their paths."
        )
    if isinstance(ids, np.ndarray) and not (-1 <= ids.min() <= ids.max() < n_old):
        raise ValueError(
            f"tokens lie between {ids.min()} and {ids.max()}, but {quoted(path)} had"
            f" {n_old} rows: give rows from 0 to {n_old - 1}, and -1 for new tokens."
        )
    return ids


def _check(found: ByPath, new: Mapping[str, Any], tokens: Any) -> None:
    tables = {path for path, moments in found.items() if isinstance(moments, Factored)}
    if not tables:
        raise ValueError(
            "There is no EmberState in the optimizer state, but only that of Ember can"
            " be resized: convert a state of Adam with from_adam first."
        )
    for path, moments in found.items():
        if not isinstance(moments, Dense) or path not in new:
            continue
        before, after = moments.nu.shape, new[path].shape
        if before != after:
            raise ValueError(
                f"Adam has moments of {quoted(path)} with the shape {before}, and the"
                f" parameter now has {after}, but only the state of Ember can be"
                " resized: give that table to Ember with from_adam first."
            )
    if isinstance(tokens, Mapping) and (unknown := tokens.keys() - tables):
        raise ValueError(
            f"tokens name {', '.join(map(quoted, sorted(unknown)))}, but the tables of"
            f" Ember are {', '.join(map(quoted, sorted(tables)))}."
        )
