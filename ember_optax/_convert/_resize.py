"""Optimizer states that follow a vocabulary as it grows, shrinks or is reordered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from ember_optax._axes import (
    VocabAxis,
    axis_of_state,
    check_vocab_axis,
    token_axes,
)
from ember_optax._ember import EmberState
from ember_optax._mesh import constrain
from ember_optax._paths import by_path, listed, path_from_key, quoted
from ember_optax._rule import TableMoments
from ember_optax._states import StateLeaf, leaves_of, owner

OptState = TypeVar("OptState")


def resize_vocab(
    opt_state: OptState,
    old_params: Any,
    new_params: Any,
    *,
    tokens: ArrayLike | Mapping[str, ArrayLike] | None = None,
    vocab_axis: VocabAxis = None,
) -> OptState:
    r"""Returns the optimizer state for tables with another vocabulary.

    A token that stays keeps its `row`, and takes the steps that it would have taken. A
    row of zero would give a new token a first step of up to :math:`1 / \sqrt{1 - b_2}`
    times the learning rate, 32 at `b2 = 0.999`. It gets the mean of all rows that have
    had a gradient, with which its first step is as large as those of other tokens.

    Args:
      opt_state: state of any optimizer with Ember in it. Every
        :class:`ember_optax.EmberState` is resized, and so are the gradients that
        `optax.MultiSteps` has accumulated of its tables, with zeros for new tokens.
        Nothing else changes.
      old_params: the parameters that it belongs to; their shapes are enough.
      new_params: the parameters after the change; likewise. Their values are yours to
        choose.
      tokens: integers [new V], for each row the old one that it was, or -1 for a new
        token. An old row that is named twice is copied. Where tables have different
        vocabularies, a mapping from the path of a table to its integers. By default
        tokens were appended or dropped at the end.
      vocab_axis: as given to `ember`. A square table needs it, and so does a table that
        will be longer along another axis: give the same to the optimizer that goes on.

    Returns:
      The state, with `row` of the new length.

    Raises:
      ValueError: there is no Ember in the state, a table is missing or has changed in
        more than its number of tokens, `tokens` or `vocab_axis` do not fit, or another
        transformation has something of a parameter that changes, such as Adam its
        moments or `optax.ema` its mean. Messages name the path of the parameter.

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
    check_vocab_axis(vocab_axis)
    old, new = by_path(old_params), by_path(new_params)
    leaves = leaves_of(opt_state, old_params, whole=EmberState)
    states = [leaf.value for leaf in leaves if isinstance(leaf.value, EmberState)]
    tables = {
        path_from_key(key): m for state in states for key, m in state.tables.items()
    }
    _check_names(tables, tokens)
    changes = {
        path: _change(path, moments, old, new, tokens, vocab_axis)
        for path, moments in tables.items()
    }

    def resize(leaf: StateLeaf) -> Any:
        if isinstance(leaf.value, EmberState):
            resized = {
                key: _resize_moments(moments, changes[path_from_key(key)].ids)
                for key, moments in leaf.value.tables.items()
            }
            return leaf.value._replace(tables=resized)
        path = owner(leaf.path, old)
        if path is None or not leaf.value.ndim:
            return leaf.value
        change = changes.get(path)
        same_shape = path in new and new[path].shape == old[path].shape
        if same_shape and (change is None or change.keeps_order):
            return leaf.value
        is_gradient = leaf.part is optax.MultiStepsState and leaf.field == "acc_grads"
        if is_gradient and change:
            return _take_rows(leaf.value, change)
        raise ValueError(_other_state_message(leaf, path, old, new))

    structure = jax.tree.structure(
        opt_state, is_leaf=lambda x: isinstance(x, EmberState)
    )
    return jax.tree.unflatten(structure, map(resize, leaves))


class _Change(NamedTuple):
    """What happens to the tokens of a table."""

    axis: int  # that holds the tokens
    ids: ArrayLike  # the old row of each new one, -1 for a new token
    keeps_order: bool  # no token comes, goes or moves


def _resize_moments(moments: TableMoments, ids: ArrayLike) -> TableMoments:
    """Returns the moments of rows `ids`, -1 for one that has had no gradient yet."""
    spec = jax.typeof(moments.row).sharding.spec
    row = constrain(moments.row, P(), None)
    ids = jnp.asarray(ids)
    # Of mean, median and lower quantiles of the rows, the mean comes closest to the
    # root mean square step of the tokens of a batch, for embeddings and for heads.
    total = jnp.sum(row)
    seed = total / jnp.maximum(jnp.count_nonzero(row), 1).astype(row.dtype)
    new_row = jnp.where(ids < 0, seed, row[jnp.maximum(ids, 0)])
    # With both means equal, old tokens keep their vhat whichever of them is its scale.
    tiny = jnp.finfo(row.dtype).tiny
    ratio = jnp.sum(new_row / jnp.maximum(total, tiny)) * (row.size / ids.size)
    col = moments.col * jnp.where(total > 0, ratio, 1)
    return TableMoments(constrain(new_row, spec, None), col)


def _take_rows(gradient: jax.Array, change: _Change) -> jax.Array:
    """Returns the gradient of a table with other tokens: zeros for new ones."""
    ids = jnp.asarray(change.ids)
    ids = jnp.where(ids < 0, gradient.shape[change.axis], ids)
    index = (*[slice(None)] * change.axis, ids)
    explicit = jax.sharding.get_abstract_mesh().are_all_axes_explicit
    return gradient.at[index].get(
        mode="fill",
        fill_value=0,
        out_sharding=jax.typeof(gradient).sharding.spec if explicit else None,
    )


def _change(
    path: str,
    moments: TableMoments,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    tokens: Any,
    vocab_axis: VocabAxis,
) -> _Change:
    """Returns what happens to the tokens of a table.

    Raises:
      ValueError: it is not clear, or no change of tokens only.
    """
    for name, params in (("old_params", old), ("new_params", new)):
        if path not in params:
            raise ValueError(
                f"The state holds the moments of {quoted(path)}, but {name} has no such"
                " parameter. Give the parameters before and after the change in the"
                " container that the optimizer sees."
            )
    before, after = old[path].shape, new[path].shape
    axis = axis_of_state(path, before, moments, vocab_axis)
    if (*before[:axis], *before[axis + 1 :]) != (*after[:axis], *after[axis + 1 :]):
        raise ValueError(
            f"{quoted(path)} had the shape {before} and has {after}, but only axis"
            f" {axis}, that of the tokens, may change. For another width, start anew"
            " with tx.init."
        )
    given = vocab_axis.get(path) if isinstance(vocab_axis, Mapping) else vocab_axis
    later = token_axes({path: new[path]}, given)[path]
    if later != axis:
        raise ValueError(
            f"{quoted(path)} has its tokens along axis {axis}, but with the new shape"
            f" {after} the optimizer would take axis {later}: pass"
            f" vocab_axis={{{path!r}: {axis}}} here and to ember."
        )
    chosen = tokens.get(path) if isinstance(tokens, Mapping) else tokens
    ids = _checked_ids(path, chosen, before[axis], after[axis])
    keeps_order = not isinstance(ids, Tracer) and np.array_equal(
        ids, np.arange(before[axis])
    )
    return _Change(axis, ids, keeps_order)


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


def _check_names(tables: Mapping[str, TableMoments], tokens: Any) -> None:
    if not tables:
        raise ValueError(
            "There is no EmberState in the optimizer state, but only that of Ember can"
            " be resized: convert a state of Adam with from_adam first."
        )
    if isinstance(tokens, Mapping) and (unknown := tokens.keys() - tables.keys()):
        raise ValueError(
            f"tokens name {listed(unknown)}, but the tables of Ember are"
            f" {listed(tables)}."
        )


def _other_state_message(
    leaf: StateLeaf, path: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> str:
    after = new[path].shape if path in new else "none"
    if leaf.part is optax.ScaleByAdamState:
        return (
            f"Adam has moments of {quoted(path)} with the shape {leaf.value.shape}, and"
            f" the parameter had the shape {old[path].shape} and now has {after}, or"
            " its tokens move, but only the state of Ember can be resized: give that"
            " table to Ember with from_adam first."
        )
    return (
        f"The state has a {leaf.name} of {quoted(path)} with the shape"
        f" {leaf.value.shape}, and the parameter had the shape {old[path].shape} and"
        f" now has {after}, or its tokens move, but only the state of Ember and"
        " accumulated gradients can be resized: take that transformation out before"
        " the change, or start anew with tx.init."
    )
