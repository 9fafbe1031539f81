"""Scalars for a training log from the state of Ember."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ember_optax import _checks, _decay
from ember_optax._axes import VocabAxis, axis_of_state, check_vocab_axis
from ember_optax._decay import ScalarOrSchedule
from ember_optax._ember import EmberState
from ember_optax._mesh import replicate
from ember_optax._paths import by_path, listed, path_from_key, quoted
from ember_optax._rule import TableMoments


def monitor(
    opt_state: Any,
    *,
    updates: Any = None,
    params: Any = None,
    b2: ScalarOrSchedule | None = None,
    vocab_axis: VocabAxis = None,
) -> dict[str, jax.Array]:
    r"""Computes scalars of each token table for a training log.

    From the state alone, with V + D reads of each table, a sort of V numbers and no
    collective:

    - `silent`: share of rows without a gradient so far. 1 means that no gradient
      reaches the table.
    - `grad_p10`, `grad_p50`, `grad_max`: quantiles of the root mean square (RMS) of a
      row's gradients, :math:`\sqrt{row / (1 - b_2^t)}`, after clipping. Silent rows do
      not count. Ember divides a row's gradient by it, so it turns the learning rate
      into the effective rate of the row. `grad_p10` falls while rare rows get no
      gradient.
    - `col_max`: RMS gradient of the largest column, relative to that of all columns;
      1 if all are equal. Large values show features that dominate the gradient.
    - `largest_step`, with `b2`: RMS of the next update of a row that has been silent
      for long, in multiples of the learning rate:
      :math:`\sqrt{(1 - \prod b_2) / (1 - b_2)}`, with the decay of the next step. It
      holds for a gradient that is spread over the columns like those of other rows.

    With `updates` or `params`, for one more pass over their tables each; on a mesh XLA
    adds the collectives that row means of sharded tables need:

    - `update_p10`, `update_p50`, `update_max`: quantiles of the RMS of a row's update,
      over rows that move. All are 0 if the table has no learning rate. `update_max`
      jumps when a row wakes up.
    - `param_p10`, `param_p50`, `param_max`: the same of the table. If they keep
      growing, the table drifts.
    - `relative_update`, with both: RMS of the update divided by that of the table.

    Args:
      opt_state: state of any optimizer with Ember in it, also that of `nnx.Optimizer`.
      updates: what `tx.update` returned, with the learning rate in it.
      params: the parameters.
      b2: the `b2` of Ember. The state does not contain it.
      vocab_axis: the `vocab_axis` of Ember. With `updates` or `params`, a square table
        needs it.

    Returns:
      Scalars by `<path of the table>/<quantity>`, as TensorBoard groups them.

    Raises:
      ValueError: the state has no Ember, or `updates` or `params` do not fit it.

    Examples:
      >>> import jax.numpy as jnp, optax, ember_optax
      >>> params = {"embed": jnp.array([[3.0, 3.0], [0.0, 0.0], [1.0, 1.0]])}
      >>> tx = ember_optax.ember(1e-2, b2=0.99)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> scalars = ember_optax.monitor(state, updates=updates, params=params, b2=0.99)
      >>> for name, value in scalars.items():
      ...   print(f"{name:<22}{value:.3f}")
      embed/silent          0.333
      embed/grad_p10        1.000
      embed/grad_p50        1.000
      embed/grad_max        3.000
      embed/col_max         1.000
      embed/largest_step    1.411
      embed/update_p10      0.010
      embed/update_p50      0.010
      embed/update_max      0.010
      embed/param_p10       1.000
      embed/param_p50       1.000
      embed/param_max       3.000
      embed/relative_update 0.004
    """
    check_vocab_axis(vocab_axis)
    if b2 is not None and not callable(b2):
        _checks.check_b2(b2)
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, EmberState))
    states = [leaf for leaf in leaves if isinstance(leaf, EmberState)]
    if not states:
        raise ValueError(
            "The optimizer state has no EmberState: monitor takes the state of an"
            " optimizer with Ember in it."
        )
    trees = {"updates": updates, "params": params}
    arrays = {k: by_path(tree) for k, tree in trees.items() if tree is not None}
    scalars = {}
    for state in states:
        for key, moments in state.tables.items():
            path = path_from_key(key)
            found = _of_moments(moments, state.bias_correction)
            if b2 is not None:
                found["largest_step"] = _largest_step(state, b2)
            squares = {
                name: _row_mean_squares(path, moments, name, tree, vocab_axis)
                for name, tree in arrays.items()
            }
            for name, square in squares.items():
                found |= _quantiles(name.removesuffix("s"), square)
            if len(squares) == 2:
                found["relative_update"] = _relative_size(**squares)
            prefix = f"{path}/" if path else ""
            scalars |= {f"{prefix}{name}": value for name, value in found.items()}
    return scalars


def _largest_step(state: EmberState, b2: ScalarOrSchedule) -> jax.Array:
    """Computes the next step of a row that has been silent for long."""
    correction = state.bias_correction
    gap = _decay.one_minus_b2(b2, state.count, correction.dtype)
    return jnp.sqrt((correction + gap * (1 - correction)) / gap)


def _row_mean_squares(
    path: str,
    moments: TableMoments,
    name: str,
    tree: dict[str, jax.Array],
    vocab_axis: VocabAxis,
) -> jax.Array:
    """Computes the mean square of each row of a table of `tree`, called `name`."""
    if path not in tree:
        raise ValueError(
            f"The state has the moments of {quoted(path)}, but {name} has"
            f" {listed(tree)}. Give the tree that the optimizer sees."
        )
    table = tree[path]
    axis = axis_of_state(path, table.shape, moments, vocab_axis)
    columns = tuple(a for a in range(table.ndim) if a != axis)
    square = jnp.square(table.astype(moments.row.dtype))
    return replicate(jnp.mean(square, axis=columns), None)


def _relative_size(updates: jax.Array, params: jax.Array) -> jax.Array:
    """Divides the RMS of updates by that of parameters, given the squares of rows."""
    tiny = jnp.finfo(params.dtype).tiny
    return jnp.sqrt(jnp.mean(updates) / jnp.maximum(jnp.mean(params), tiny))


def _of_moments(moments: TableMoments, correction: jax.Array) -> dict[str, jax.Array]:
    """Computes the scalars that need nothing but the state."""
    row, col = moments
    tiny = jnp.finfo(row.dtype).tiny
    corrected = row / jnp.maximum(correction.astype(row.dtype), tiny)
    return {
        "silent": jnp.mean(row == 0, dtype=row.dtype),
        **_quantiles("grad", corrected),
        "col_max": jnp.sqrt(jnp.max(col) / jnp.maximum(jnp.mean(col), tiny)),
    }


def _quantiles(name: str, squares: jax.Array) -> dict[str, jax.Array]:
    """Computes quantiles of the roots of the rows that are not zero."""
    ordered, last = jnp.sort(squares), squares.size - 1
    n_above = jnp.maximum(jnp.count_nonzero(squares) - 1, 0)
    smallest = last - n_above
    quantiles = {
        "p10": ordered[smallest + n_above // 10],
        "p50": ordered[smallest + n_above // 2],
        "max": ordered[last],
    }
    return {f"{name}_{q}": jnp.sqrt(value) for q, value in quantiles.items()}
