"""Ember for tables so large that a step must touch only the rows of its batch.

A row without a gradient is not moved by the rule, and its statistic only decays by a
known power of b2. Both can wait until the row is met again, and nothing is lost: a step
equals that of :func:`ember_optax.ember` on the dense gradient.
"""

from __future__ import annotations

from functools import partial
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from ember_optax import _checks
from ember_optax._axes import token_axes
from ember_optax._decay import Scalar
from ember_optax._mesh import Layout, constrain, find_layout
from ember_optax._paths import by_path
from ember_optax._rule import init_moments
from ember_optax.lazy import _step
from ember_optax.lazy._step import LazyState, Rates, RowDecay


def init(
    table: jax.Array, *, weight_decay: bool = False, param_shardings: Any = None
) -> LazyState:
    """Builds the state before the first step.

    Args:
      table: floating `[V, *D]`, one row per token, n-gram or hash. A
        `jax.ShapeDtypeStruct` will do.
      weight_decay: whether :func:`update` will get a `weight_decay`. The state then
        needs one more float32[V].
      param_shardings: on a mesh with Auto axes, the `NamedSharding` of the table.

    Returns:
      A :class:`LazyState` of zeros, sharded like the rows. Its statistics are float32,
      or float64 for a float64 table.

    Raises:
      ValueError: `table` has less than two axes, an empty one or no floating dtype, or
        is sharded along other axes than its rows.
    """
    axes = _row_axes(layout := _find_layout(table, param_shardings))
    row, col = init_moments(table.shape, table.dtype, axis=0)
    # Allocate separate arrays: a buffer that is in the state twice cannot be donated.
    decay = RowDecay(*(jnp.zeros(shape, row.dtype) for shape in ([], [], row.shape)))
    state = LazyState(
        row=row,
        last_step=jnp.zeros(row.shape, jnp.int32),
        col=col,
        count=jnp.zeros([], jnp.int32),
        decay=decay if weight_decay else None,
    )
    if layout is None:
        return state
    specs = _specs(state, axes)
    return jax.tree.map(lambda x, spec: constrain(x, spec, layout), state, specs)


def lookup(table: jax.Array, state: LazyState, ids: jax.Array) -> jax.Array:
    """Reads rows as they are now, with the weight decay that they have missed.

    This is what a model reads: differentiate with respect to these rows, and there is
    never a gradient of the size of the table. `lookup(table, state, jnp.arange(V))` is
    the whole table, to evaluate or to export.

    Args:
      table: `[V, *D]`.
      state: state of the table.
      ids: integers of any shape; the rows of those outside [0, V) are zeros.

    Returns:
      `[*ids.shape, *D]` in the dtype of the table; on Explicit axes sharded as `ids`.

    Raises:
      ValueError: `state` belongs to another table, or `ids` are not integers.
    """
    _check_state(table, state)
    _check_ids(ids)
    clipped = _step.clip_ids(ids, table.shape[0])

    def gather(x: jax.Array) -> jax.Array:
        explicit = jax.sharding.get_abstract_mesh().are_all_axes_explicit
        spec = P(*jax.typeof(ids).sharding.spec, *[None] * (x.ndim - 1))
        return _step.gather(x, clipped, out_sharding=spec if explicit else None)

    theta = gather(table)
    if state.decay is None:
        return theta
    theta = _step.catch_up(theta, state.decay, gather(state.decay.row))
    return theta.astype(table.dtype)


def update(
    table: jax.Array,
    state: LazyState,
    ids: jax.Array,
    row_grads: jax.Array,
    *,
    learning_rate: optax.ScalarOrSchedule,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    batch_weight_decay: Scalar = 0.0,
    factored: bool = True,
    param_shardings: Any = None,
) -> tuple[jax.Array, LazyState]:
    r"""Takes a step on the rows of a batch, equal to that on the dense gradient.

    The rule is that of :func:`ember_optax.ember`. A row i that was last touched at step
    s and is touched again at step t catches up:

    .. math::

      row_i \leftarrow b_2^{t - s} \, row_i + (1 - b_2) \, mean_j \, G_{ij}^2

    Columns average over all V rows. Time and memory depend on the size of the batch and
    not on V where `table` and `state` are donated to the `jax.jit` around this.

    Args:
      table: floating `[V, *D]`.
      state: result of :func:`init` or of the last step.
      ids: integers of any shape. Gradients of an id that repeats are added up; ids
        outside [0, V) are padding.
      row_grads: floating `[*ids.shape, *D]`, gradients with respect to what
        :func:`lookup` returns for `ids`.
      learning_rate: a scalar, or a schedule from the count of steps to a scalar.
      b2: decay of both statistics, in [0, 1), the same in all steps.
      eps: added to the root of the second moment, positive.
      weight_decay: strength of the decoupled decay of all rows, as in the dense rule.
        Rows outside the batch catch up when they are touched or read by :func:`lookup`.
        Needs `init(table, weight_decay=True)`. It may change from step to step as the
        learning rate may; their product must be in [0, 1).
      batch_weight_decay: strength of a decay of the rows of the batch only, once for
        each step that touches a row. This is not the dense rule.
      factored: False leaves out the factor of the columns and does not update `col`:
        each row has its own rate and nothing else, as in the row-wise Adagrad of
        recommender systems. With `b2=1 - 1e-9` and a learning rate of
        c / sqrt(count + 1) it is that: c G over the root of the sum of all mean squares
        of the row.
      param_shardings: on a mesh with Auto axes, the `NamedSharding` of the table. Each
        device then updates its own rows, as on Explicit axes it does without.

    Returns:
      The table and its state after the step. New rows are computed in the dtype of the
      statistics and rounded once.

    Raises:
      ValueError: shapes or dtypes do not fit each other, a hyperparameter is out of its
        range, the state was made for another weight decay, or the table is sharded
        along other axes than its rows.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ember_optax import lazy
      >>> table = jnp.ones((1000, 2))
      >>> state = lazy.init(table)
      >>> ids = jnp.array([7, 7, 1000])  # the last one is padding
      >>> def loss(rows):
      ...   return jnp.sum(rows ** 2)
      >>> row_grads = jax.grad(loss)(lazy.lookup(table, state, ids))
      >>> table, state = lazy.update(table, state, ids, row_grads, learning_rate=0.5)
      >>> print(table[6:8].round(1))
      [[1.  1. ]
       [0.5 0.5]]

    References:
      `Token Geometry <https://arxiv.org/abs/2607.01455>`_, 2026
    """
    _checks.check_constant(b2)
    _checks.check_hyperparameters(b2, eps)
    _checks.check_weight_decay(weight_decay)
    _checks.check_weight_decay(batch_weight_decay, "batch_weight_decay")
    layout = _find_layout(table, param_shardings)
    _check_state(table, state)
    _check_ids(ids)
    _check_row_grads(table, ids, row_grads)
    _check_decay(state, weight_decay, batch_weight_decay)
    lr = learning_rate(state.count) if callable(learning_rate) else learning_rate
    scalars = lr, weight_decay, batch_weight_decay
    rates = Rates(*(jnp.asarray(x, state.row.dtype) for x in scalars))
    # Replicate the batch: each device selects its own rows from all of it.
    ids, row_grads = constrain(ids, P(), layout), constrain(row_grads, P(), layout)
    ids = _step.clip_ids(ids, table.shape[0]).ravel()
    row_grads = row_grads.reshape(ids.size, *table.shape[1:])

    axes = _row_axes(layout)
    take_step = partial(_step.step, b2=b2, eps=eps, factored=factored, axes=axes)
    if layout:
        specs = P(axes), _specs(state, axes)
        take_step = jax.shard_map(
            take_step,
            mesh=layout.mesh,
            in_specs=(*specs, P(), P(), P()),
            out_specs=specs,
        )
    return take_step(table, state, ids, row_grads, rates)


def _find_layout(table: jax.Array, param_shardings: Any) -> Layout | None:
    tables = by_path(table)
    token_axes(tables, 0)
    return find_layout(tables, param_shardings)


def _row_axes(layout: Layout | None) -> tuple[str, ...]:
    """Finds the mesh axes that the rows are sharded over."""
    if layout is None:
        return ()
    (spec,) = layout.specs.values()
    rows, *columns = spec
    if any(columns):
        raise ValueError(
            f"The table is sharded over the mesh axes {spec}, but lazy rows"
            " must be whole, each on one device: shard the first axis only."
        )
    return rows


def _specs(state: LazyState, axes: tuple[str, ...]) -> LazyState:
    """Builds the PartitionSpecs of a state, whose per-row arrays follow the rows."""
    rows = P(axes)
    decay = RowDecay(P(), P(), rows) if state.decay else None  # pyright: ignore
    return LazyState(rows, rows, P(), P(), decay)  # pyright: ignore


def _check_state(table: jax.Array, state: LazyState) -> None:
    _checks.check_state(state, LazyState)
    if (state.row.shape, state.col.shape) != (table.shape[:1], table.shape[1:]):
        raise ValueError(
            f"The state holds a row of {state.row.shape} and a col of"
            f" {state.col.shape}, but for a table of {table.shape} they must be"
            f" {table.shape[:1]} and {table.shape[1:]}: call lazy.init with this table."
        )


def _check_ids(ids: jax.Array) -> None:
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"ids have the dtype {ids.dtype}, but they must be integers: the numbers of"
            " the rows."
        )


def _check_row_grads(table: jax.Array, ids: jax.Array, row_grads: jax.Array) -> None:
    expected = ids.shape + table.shape[1:]
    if row_grads.shape != expected:
        raise ValueError(
            f"row_grads have the shape {row_grads.shape}, but ids of {ids.shape} and a"
            f" table of {table.shape} need {expected}: give the gradient of the loss"
            " with respect to lazy.lookup(table, state, ids)."
        )
    if not jnp.issubdtype(row_grads.dtype, jnp.floating):
        raise ValueError(
            f"row_grads have the dtype {row_grads.dtype}, but gradients must be"
            " floating-point numbers."
        )


def _check_decay(
    state: LazyState, weight_decay: Scalar, batch_weight_decay: Scalar
) -> None:
    def is_zero(x: Scalar) -> bool:
        return isinstance(x, Real) and not x

    if state.decay is None and not is_zero(weight_decay):
        raise ValueError(
            f"weight_decay is {weight_decay}, but the state does not know what decay a"
            " row has missed: use lazy.init(table, weight_decay=True), or decay the"
            " rows of the batch only, with batch_weight_decay."
        )
    if state.decay is not None and not is_zero(batch_weight_decay):
        raise ValueError(
            f"batch_weight_decay is {batch_weight_decay}, but the state was made"
            " for the decay of all rows: use weight_decay, or lazy.init(table)."
        )
