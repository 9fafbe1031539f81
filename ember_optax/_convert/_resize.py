"""Optimizer states for a vocabulary that grows, shrinks or is reordered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from ember_optax._axes import VocabAxis, axis_of_state, check_vocab_axis, token_axes
from ember_optax._ember import EmberState
from ember_optax._mesh import replicate
from ember_optax._paths import by_path, listed, path_from_key, quoted
from ember_optax._rule import TableMoments
from ember_optax._states import StateLeaf, flatten_state, owning_param

OptState = TypeVar("OptState")


def resize_vocab(
    opt_state: OptState,
    old_params: Any,
    new_params: Any,
    *,
    tokens: ArrayLike | Mapping[str, ArrayLike] | None = None,
    vocab_axis: VocabAxis = None,
) -> OptState:
    r"""Resizes an optimizer state for tables with another vocabulary.

    A token that stays keeps its `row` and the size of its steps. With a `row` of zero,
    the first step of a new token would be up to :math:`1 / \sqrt{1 - b_2}` times the
    learning rate, 32 at `b2 = 0.999`. Instead it gets the mean of all rows that have
    had a gradient, which makes its first step as large as those of other tokens.

    Args:
      opt_state: state of any optimizer with Ember in it. Every
        :class:`ember_optax.EmberState` is resized, and the gradients of its tables that
        `optax.MultiSteps` has accumulated, with zeros for new tokens. Nothing else
        changes.
      old_params: parameters that the state belongs to, or their shapes.
      new_params: parameters after the change, or their shapes. You choose the values of
        new rows.
      tokens: integers [new V]: the old row of each row, or -1 for a new token. An old
        row that occurs twice is copied. Where tables have different vocabularies, a
        mapping from the path of a table to its integers. By default tokens were
        appended or dropped at the end.
      vocab_axis: the `vocab_axis` of Ember. A square table needs it, and so does a
        table that becomes longer along another axis; build the optimizer that continues
        with the same.

    Returns:
      The state, with rows of the new length.

    Raises:
      ValueError: the state has no Ember, a table is missing or has changed in more than
        its number of tokens, `tokens` or `vocab_axis` do not fit, or another
        transformation has an array for a parameter that changes, such as Adam's moments
        or the mean of `optax.ema`. Messages name the path of the parameter.

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
    leaves, structure = flatten_state(opt_state, old_params, stop_at=EmberState)
    states = [leaf.value for leaf in leaves if isinstance(leaf.value, EmberState)]
    moments = {path_from_key(key): x for s in states for key, x in s.tables.items()}
    axes = _token_axes(moments, old, new, vocab_axis)
    ids = _old_rows(
        tokens, {p: (old[p].shape[a], new[p].shape[a]) for p, a in axes.items()}
    )

    def resize(leaf: StateLeaf) -> Any:
        if isinstance(leaf.value, EmberState):
            resized = {
                key: _resize_moments(table, ids[path_from_key(key)])
                for key, table in leaf.value.tables.items()
            }
            return leaf.value._replace(tables=resized)
        path = owning_param(leaf.path, old)
        if path is None or not leaf.value.ndim or not changes(path):
            return leaf.value
        if leaf.name == "MultiStepsState.acc_grads" and path in ids:
            return _take_rows(leaf.value, axes[path], ids[path])
        raise ValueError(
            f"{quoted(path)} changes its shape or the order of its tokens, but the"
            f" state has {leaf.name} of {quoted(path)} with the shape"
            f" {leaf.value.shape}. Only the state of Ember and accumulated gradients"
            " can be resized: convert moments of Adam with from_adam first, take other"
            " transformations out, or start anew with tx.init."
        )

    def changes(path: str) -> bool:
        if path not in new or new[path].shape != old[path].shape:
            return True
        rows = ids.get(path, ())
        return isinstance(rows, Tracer) or (rows != np.arange(len(rows))).any()

    return jax.tree.unflatten(structure, map(resize, leaves))


def _resize_moments(moments: TableMoments, ids: Any) -> TableMoments:
    row, col = moments
    # Among mean, median and lower quantiles of the rows, the mean comes closest to the
    # root mean square step of the tokens of a batch, for embeddings and for heads.
    total = jnp.sum(row)
    seed = total / jnp.maximum(jnp.count_nonzero(row), 1).astype(row.dtype)
    new_row = jnp.where(ids < 0, seed, row[jnp.maximum(ids, 0)])
    # Ember divides by mean(col), which equals mean(row). Keep them equal.
    tiny = jnp.finfo(row.dtype).tiny
    ratio = jnp.sum(new_row / jnp.maximum(total, tiny)) * (row.size / new_row.size)
    return replicate(TableMoments(new_row, col * jnp.where(total > 0, ratio, 1)), None)


def _take_rows(gradient: jax.Array, axis: int, ids: Any) -> jax.Array:
    """Reorders a gradient of a table, with zeros for new tokens."""
    ids = jnp.where(ids < 0, gradient.shape[axis], ids)
    explicit = jax.sharding.get_abstract_mesh().are_all_axes_explicit
    return gradient.at[(*[slice(None)] * axis, ids)].get(
        mode="fill",
        fill_value=0,
        out_sharding=jax.typeof(gradient).sharding.spec if explicit else None,
    )


def _token_axes(
    moments: Mapping[str, TableMoments],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    vocab_axis: VocabAxis,
) -> dict[str, int]:
    """Finds the token axis of each table, and checks that only that axis changes."""
    if not moments:
        raise ValueError(
            "The optimizer state has no EmberState, but only that of Ember can be"
            " resized: convert a state of Adam with from_adam first."
        )
    for name, params in (("old_params", old), ("new_params", new)):
        if missing := moments.keys() - params.keys():
            raise ValueError(
                f"The state has the moments of {listed(missing)}, but {name} has no"
                " such parameter. Give the parameters before and after the change in"
                " the container that the optimizer sees."
            )
    later = token_axes({path: new[path] for path in moments}, vocab_axis)
    for path, after in later.items():
        before, shape = old[path].shape, new[path].shape
        axis = axis_of_state(path, before, moments[path], vocab_axis)
        if shape != (*before[:axis], *shape[axis : axis + 1], *before[axis + 1 :]):
            raise ValueError(
                f"{quoted(path)} had the shape {before} and has {shape}, but only axis"
                f" {axis}, which holds the tokens, may change. For another width, start"
                " anew with tx.init."
            )
        if after != axis:
            raise ValueError(
                f"{quoted(path)} has its tokens along axis {axis}, but with the new"
                f" shape {shape} the optimizer would take axis {after}: pass"
                f" vocab_axis={{{path!r}: {axis}}} here and to the optimizer."
            )
    return later


def _old_rows(tokens: Any, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Finds the old row of each new row of each table, -1 for new tokens.

    Args:
      tokens: the argument of :func:`resize_vocab`.
      sizes: old and new number of tokens, by the path of the table.
    """
    if isinstance(tokens, Mapping) and (unknown := tokens.keys() - sizes.keys()):
        raise ValueError(
            f"tokens has {listed(unknown)}, but the tables of Ember are"
            f" {listed(sizes)}."
        )
    found = {}
    for path, (n_old, n_new) in sizes.items():
        ids = tokens.get(path) if isinstance(tokens, Mapping) else tokens
        if ids is None:
            ids = np.where(np.arange(n_new) < n_old, np.arange(n_new), -1)
        if not isinstance(ids, Tracer):
            ids = np.asarray(ids)
        if ids.shape != (n_new,) or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"tokens is {ids.dtype}{list(ids.shape)}, but {quoted(path)} has"
                f" {n_new} rows now: give an integer for each. For tables with"
                " different vocabularies, give a mapping from their paths."
            )
        if isinstance(ids, np.ndarray) and not -1 <= ids.min() <= ids.max() < n_old:
            raise ValueError(
                f"tokens is between {ids.min()} and {ids.max()}, but {quoted(path)}"
                f" had {n_old} rows: give rows from 0 to {n_old - 1}, and -1 for new"
                " tokens."
            )
        found[path] = ids
    return found
