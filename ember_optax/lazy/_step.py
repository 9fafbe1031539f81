"""The mathematics of a lazy step: rows that catch up when they are met again."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ember_optax import _decay, _rule
from ember_optax._decay import Scalar
from ember_optax._rule import MeanSquares, TableMoments


class RowDecay(NamedTuple):
    """Weight decay that rows still have to catch up with, in logarithms."""

    total: jax.Array  # float32[], sum of log(1 - lr weight_decay) over all steps
    error: jax.Array  # float32[], rounding error of `total`
    row: jax.Array  # float32[V], `total` at the last step of each row


class LazyState(NamedTuple):
    """State of the lazy Ember: two numbers for each row and one for each column."""

    row: jax.Array  # float32[V], statistic of each row at its last step
    last_step: jax.Array  # int32[V], the last step that touched the row, 0 before any
    col: jax.Array  # float32[*D], statistic of each column
    count: jax.Array  # int32[], steps taken
    decay: RowDecay | None = None  # with weight decay: a third number for each row


class Rates(NamedTuple):
    """Learning rate and weight decays of a step, in the dtype of the state."""

    learning_rate: jax.Array
    weight_decay: jax.Array  # of all rows
    batch_weight_decay: jax.Array  # of the rows of the batch only


def gather(x: jax.Array, ids: jax.Array, out_sharding: Any = None) -> jax.Array:
    """Gathers x[ids], and zeros for ids that :func:`clip_ids` made padding."""
    return x.at[ids].get(mode="fill", fill_value=0, out_sharding=out_sharding)


def scatter(x: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """Writes values to x[ids], except where ids are padding."""
    return x.at[ids].set(values.astype(x.dtype), mode="drop")


def clip_ids(ids: jax.Array, n_rows: int) -> jax.Array:
    """Clips ids to int32 in [0, n_rows]; n_rows stands for padding."""
    bits = max(32, 8 * ids.dtype.itemsize)
    # As unsigned integers, negative ids become large and are clamped to padding.
    return jnp.minimum(ids.astype(f"uint{bits}"), n_rows).astype(jnp.int32)


def catch_up(theta: jax.Array, decay: RowDecay, row: jax.Array) -> jax.Array:
    """Decays rows [*N, *D] by what `total` has grown since it was `row`, [*N]."""
    return _shrink(theta.astype(row.dtype), expand(decay.total - row, theta))


def expand(x: jax.Array, theta: jax.Array) -> jax.Array:
    """Adds axes of size 1 to x [*N], for broadcasting with theta [*N, *D]."""
    return jnp.expand_dims(x, tuple(range(x.ndim, theta.ndim)))


def step(
    table: jax.Array,
    state: LazyState,
    ids: jax.Array,
    row_grads: jax.Array,
    rates: Rates,
    *,
    b2: Scalar,
    eps: Scalar,
    factored: bool,
    axes: tuple[str, ...],
) -> tuple[jax.Array, LazyState]:
    """Takes a step on the rows that this device has.

    Args:
      table: the device's rows, [V, *D].
      state: state of these rows.
      ids: int32[N], result of :func:`clip_ids` on ids of the whole table.
      row_grads: gradients of the rows `ids`, [N, *D].
      rates: learning rate and weight decays.
      b2: decay of both statistics.
      eps: added to the root of the second moment.
      factored: whether columns have a factor of their own.
      axes: inside `jax.shard_map`, the mesh axes that rows are sharded over.
    """
    n_rows, dtype = table.shape[0], state.row.dtype
    if axes:
        ids = clip_ids(ids - jax.lax.axis_index(axes) * n_rows, n_rows)
    ids, place = jnp.unique(ids, size=ids.size, fill_value=n_rows, return_inverse=True)
    grads = jax.ops.segment_sum(row_grads.astype(dtype), place, ids.size)
    grads = jnp.where(expand(ids < n_rows, grads), grads, 0)

    decay = state.decay and _advance(state.decay, rates)
    old = table, state.row, state.last_step, decay and decay.row
    theta, row, last_step, row_decay = jax.tree.map(lambda x: gather(x, ids), old)

    count = cast(jax.Array, optax.safe_increment(state.count))
    gap = _decay.one_minus_b2(b2, state.count, dtype)
    squares = _mean_squares(grads, n_rows, factored=factored, axes=axes)
    col = state.col if factored else jnp.ones_like(state.col)
    # A row without gradient decays by b2 at each step that it missed: catch up with all
    # but this one. Once `count` saturates, `count - last_step` is 0; clamp it so that
    # the statistic still decays.
    missed = jnp.maximum(count - last_step, 1) - 1
    # With a b2 of 0 the logarithm is infinite, and 0 times it is NaN.
    factor = jnp.exp(missed.astype(dtype) * jnp.log1p(-gap))
    row *= jnp.where(missed > 0, factor, 1)
    moments = _rule.update_moments(TableMoments(row, col), squares, gap)
    correction = _decay.bias_correction(b2, count, dtype)
    if not factored:
        moments = moments._replace(col=col)
    factors = _rule.denominators(moments, squares, correction)
    update = _rule.precondition(grads, factors, 0, eps)

    if decay:
        theta = catch_up(theta, decay, row_decay)
    theta = theta.astype(dtype)
    theta -= rates.learning_rate * (update + rates.batch_weight_decay * theta)

    # XLA updates a donated buffer in place only after its last read, including reads in
    # the loss. Let every write depend on the gradients, which orders it after those
    # reads. `row` is never negative, and the condition holds for NaN as well. XLA:CPU
    # drops an optimization_barrier before it decides which buffers it copies.
    written = ~(moments.row < 0)
    last_step = jnp.where(written, count, last_step)
    if decay:
        totals = jnp.where(written, decay.total, row_decay)
        decay = decay._replace(row=scatter(decay.row, ids, totals))
    state = LazyState(
        row=scatter(state.row, ids, moments.row),
        last_step=scatter(state.last_step, ids, last_step),
        col=moments.col if factored else state.col,
        count=count,
        decay=decay,
    )
    return scatter(table, ids, theta), state


def _mean_squares(
    grads: jax.Array, n_rows: int, *, factored: bool, axes: tuple[str, ...]
) -> MeanSquares:
    """Averages squares over the columns of each row, and over all rows of the table."""
    squares = jnp.square(grads)
    row = jnp.mean(squares, axis=tuple(range(1, grads.ndim)))
    if not factored:
        return MeanSquares(row, jnp.zeros(grads.shape[1:], grads.dtype))
    col = jnp.sum(squares, axis=0) / n_rows
    return MeanSquares(row, jax.lax.pmean(col, axes) if axes else col)


def _advance(decay: RowDecay, rates: Rates) -> RowDecay:
    """Adds one step to the total decay, by Kahan summation.

    In plain float32 the total would stop growing once the decay of one step is below
    its last bit.
    """
    term = jnp.log1p(-rates.learning_rate * rates.weight_decay) - decay.error
    total = decay.total + term
    return decay._replace(total=total, error=(total - decay.total) - term)


def _shrink(x: jax.Array, log: jax.Array) -> jax.Array:
    """Computes exp(log) x, for a log that is not positive.

    For small decays expm1 keeps the digits that exp would lose; for large ones the
    reverse holds.
    """
    return jnp.where(log > -0.5, x + jnp.expm1(log) * x, jnp.exp(log) * x)
