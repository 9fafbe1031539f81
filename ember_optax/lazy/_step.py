"""The mathematics of a lazy step: rows that catch up when they are met again."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ember_optax import _decay, _rule
from ember_optax._decay import Scalar
from ember_optax._reduce import Sums
from ember_optax._rule import Rule, TableMoments


class RowDecay(NamedTuple):
    """Weight decay that rows still have to catch up with, in logarithms."""

    total: jax.Array  # float32[], sum of log(1 - lr weight_decay) over all steps
    error: jax.Array  # float32[], what rounding has added to `total`
    row: jax.Array  # float32[V], `total` at the last step of each row


class LazyState(NamedTuple):
    """State of the lazy Ember: two numbers for each row and one for each column."""

    row: jax.Array  # float32[V], statistic of each row at its last step
    last: jax.Array  # int32[V], the last step that touched the row, 0 before any
    col: jax.Array  # float32[*D], statistic of each column
    count: jax.Array  # int32[], steps taken
    decay: RowDecay | None = None  # with weight decay: a third number for each row


class Rates(NamedTuple):
    """What a step multiplies with, in the dtype of the state."""

    learning_rate: jax.Array
    weight_decay: jax.Array  # of all rows
    touched_weight_decay: jax.Array  # of the rows of the batch only


def gather(x: jax.Array, ids: jax.Array, out_sharding: Any = None) -> jax.Array:
    """Returns x[ids], and zeros for ids that :func:`clip_ids` made padding."""
    return x.at[ids].get(mode="fill", fill_value=0, out_sharding=out_sharding)


def scatter(x: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """Returns x with values in the places ids, except where these are padding."""
    return x.at[ids].set(values.astype(x.dtype), mode="drop")


def clip_ids(ids: jax.Array, n_rows: int) -> jax.Array:
    """Returns int32 ids in [0, n_rows], where n_rows stands for all outside."""
    bits = max(32, 8 * ids.dtype.itemsize)
    # Negative numbers are large ones without a sign.
    return jnp.minimum(ids.astype(f"uint{bits}"), n_rows).astype(jnp.int32)


def catch_up(theta: jax.Array, decay: RowDecay, row: jax.Array) -> jax.Array:
    """Returns rows [*N, *D] after the decay since `total` was `row`, [*N]."""
    return _shrink(theta.astype(row.dtype), expand(decay.total - row, theta))


def expand(x: jax.Array, theta: jax.Array) -> jax.Array:
    """Returns x [*N] with axes of size 1 to go with theta [*N, *D]."""
    return jnp.expand_dims(x, tuple(range(x.ndim, theta.ndim)))


def step(
    table: jax.Array,
    state: LazyState,
    ids: jax.Array,
    row_grads: jax.Array,
    rates: Rates,
    *,
    b2: Scalar,
    rule: Rule,
    columns: bool,
    axes: tuple[str, ...],
) -> tuple[jax.Array, LazyState]:
    """Takes a step on the rows that this device has.

    Args:
      table: the device's rows, [V, *D].
      state: likewise.
      ids: int32[N] of :func:`clip_ids`, in the whole table.
      row_grads: [N, *D].
      rates: learning rate and weight decays.
      b2: decay of both statistics.
      rule: of the dense table.
      columns: whether columns have a factor of their own.
      axes: inside `jax.shard_map`, the mesh axes that rows are sharded over.
    """
    n_rows, dtype = table.shape[0], state.row.dtype
    if axes:
        ids = clip_ids(ids - jax.lax.axis_index(axes) * n_rows, n_rows)
    ids, place = jnp.unique(ids, size=ids.size, fill_value=n_rows, return_inverse=True)
    grads = jax.ops.segment_sum(row_grads.astype(dtype), place, ids.size)
    grads = jnp.where(expand(ids < n_rows, grads), grads, 0)

    decay = state.decay and _advance(state.decay, rates)
    old = table, state.row, state.last, decay and decay.row
    theta, row, last, row_decay = jax.tree.map(lambda x: gather(x, ids), old)

    count = cast(jax.Array, optax.safe_increment(state.count))
    b2_decay = _decay.constant(b2, count, dtype)
    rate = b2_decay.rate
    col = state.col if columns else jnp.ones_like(state.col)
    sums = _sum_squares(grads, columns=columns, axes=axes)
    overflow = rule.overflow(TableMoments(row, col), sums)
    row_mean = jnp.where(overflow.row, 0, sums.row) / state.col.size
    # A saturated counter stands still: this step counts all the same.
    missed = jnp.maximum(count - last, 1).astype(dtype)
    log = missed * jnp.log1p(-rate)
    row = _rule.move(row, rate * row_mean, jnp.exp(log), -jnp.expm1(log))
    if columns:
        n_shards = jax.lax.axis_size(axes) if axes else 1
        col_mean = jnp.where(overflow.col, 0, sums.col) / (n_rows * n_shards)
        col = _rule.move(col, rate * col_mean, b2_decay.b2, rate)
    roots = rule.roots(TableMoments(row, col), sums, b2_decay)
    update = rule.precondition(grads, roots, axis=0)

    if decay:
        theta = catch_up(theta, decay, row_decay)
    theta = theta.astype(dtype)
    theta -= rates.learning_rate * (update + rates.touched_weight_decay * theta)

    # XLA writes in place only what nobody can read any more, here and in the loss. So
    # all that is written has to depend on gradients: `row` is never below 0.
    written = row >= 0
    last = jnp.where(written, count, last)
    if decay:
        total = jnp.where(written, decay.total, row_decay)
        decay = decay._replace(row=scatter(decay.row, ids, total))
    state = LazyState(
        row=scatter(state.row, ids, row),
        last=scatter(state.last, ids, last),
        col=col if columns else state.col,
        count=count,
        decay=decay,
    )
    return scatter(table, ids, theta), state


def _sum_squares(grads: jax.Array, *, columns: bool, axes: tuple[str, ...]) -> Sums:
    """Sums squares over the columns of each row and, if asked for, over all rows."""
    squares = jnp.square(grads)
    row = jnp.sum(squares, axis=tuple(range(1, grads.ndim)))
    if not columns:
        return Sums(row, jnp.zeros(grads.shape[1:], grads.dtype))
    col = jnp.sum(squares, axis=0)
    return Sums(row, jax.lax.psum(col, axes) if axes else col)


def _advance(decay: RowDecay, rates: Rates) -> RowDecay:
    """Adds a step to the total decay, as Kahan does: with the error of the last sum.

    A plain float32 would stand still as soon as a step's decay is below its last bit.
    """
    term = jnp.log1p(-rates.learning_rate * rates.weight_decay)
    total, error = _decay.add(decay.total, decay.error, term)
    return decay._replace(total=total, error=error)


def _shrink(x: jax.Array, log: jax.Array) -> jax.Array:
    """Returns exp(log) x, for a log that is not positive.

    expm1 keeps all digits of the little that one step takes, exp those of the little
    that many steps leave.
    """
    return jnp.where(log > -0.5, x + jnp.expm1(log) * x, jnp.exp(log) * x)
