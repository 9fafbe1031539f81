"""The mathematics of one token table: its factored second moment and its update."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ember_optax._sharding import replicate

ColumnMean = Literal["all", "active"]


class TableMoments(NamedTuple):
    """Factored second moment of a token table with V rows."""

    row: jax.Array  # float32[V], one number per token
    col: jax.Array  # float32[*D], one number per place in a token's vector


def longest_axis(shape: tuple[int, ...]) -> int:
    """Returns the axis that holds the tokens: the longest, the first among equals."""
    return max(range(len(shape)), key=shape.__getitem__)


def init_moments(shape: tuple[int, ...], dtype: DTypeLike, axis: int) -> TableMoments:
    """Returns the zero moments of a table.

    Args:
      shape: shape of the table, at least two axes.
      dtype: floating dtype of the table.
      axis: the axis that holds the tokens; all the others are columns.

    Returns:
      Moments in float32, or in float64 for a float64 table: a narrower type cannot
      hold `b2 = 0.999`.
    """
    dtype = jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
    columns = shape[:axis] + shape[axis + 1 :]
    return TableMoments(jnp.zeros(shape[axis], dtype), jnp.zeros(columns, dtype))


def precondition(
    grad: jax.Array,
    moments: TableMoments,
    count: jax.Array,
    *,
    axis: int,
    b2: float | jax.Array,
    eps: float | jax.Array,
    column_mean: ColumnMean,
) -> tuple[jax.Array, TableMoments]:
    r"""One step of Ember on one table.

    .. math::

      row_i &\leftarrow b_2 \, row_i + (1 - b_2) \, mean_j \, g_{ij}^2 \\
      col_j &\leftarrow b_2 \, col_j + (1 - b_2) \, mean_i \, g_{ij}^2 \\
      \hat v_{ij} &= \frac{row_i \, col_j}{mean(col) \, (1 - b_2^t)} \\
      u_{ij} &= g_{ij} / (\sqrt{\hat v_{ij}} + \epsilon)

    Args:
      grad: gradient of the table, any floating dtype, with V rows along `axis` and
        columns along all other axes.
      moments: moments before the step.
      count: int32 scalar, the number t of this step, counted from 1.
      axis: the axis that holds the tokens.
      b2: decay of both statistics, in [0, 1).
      eps: added to the root, not below it.
      column_mean: `"all"` averages a column over all rows and normalises by the mean
        of `col`; `"active"` averages over rows with a gradient and normalises by the
        mean of `row`, as in the first versions of the paper.

    Returns:
      The update u, with the shape and dtype of `grad`, and the new moments.
    """
    dtype = moments.row.dtype
    columns = tuple(a for a in range(grad.ndim) if a != axis)
    # 1 - b2 and not b2 is what must be exact: float32(0.999) is off by 2e-5 of 0.001.
    rate = jnp.asarray(1 - b2, dtype)
    correction = -jnp.expm1(count.astype(dtype) * jnp.log1p(-rate))

    row_mean = replicate(jnp.mean(_square(grad, dtype), axis=columns))
    # Without the barriers XLA:CPU computes the squares once and stores all V x D.
    grad, row_mean = jax.lax.optimization_barrier((grad, row_mean))
    if column_mean == "all":
        col_mean = replicate(jnp.mean(_square(grad, dtype), axis=axis))
    else:
        active = jnp.maximum(jnp.count_nonzero(row_mean), 1).astype(dtype)
        col_mean = replicate(jnp.sum(_square(grad, dtype), axis=axis)) / active
    grad, col_mean = jax.lax.optimization_barrier((grad, col_mean))

    row = replicate(moments.row - rate * moments.row + rate * row_mean)
    col = replicate(moments.col - rate * moments.col + rate * col_mean)
    scale = jnp.mean(col if column_mean == "all" else row) * correction
    col_factor = col / jnp.maximum(scale, jnp.finfo(dtype).tiny)

    # Taking roots before the product costs V + D of them and cannot underflow.
    row_root = jnp.expand_dims(_root(row), columns)
    col_root = jnp.expand_dims(_root(col_factor), axis)
    update = grad.astype(dtype) / (row_root * col_root + jnp.asarray(eps, dtype))
    return update.astype(grad.dtype), TableMoments(row, col)


def _square(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    return jnp.square(x.astype(dtype))


def _root(x: jax.Array) -> jax.Array:
    """Returns sqrt(x), or infinity where x is 0.

    A row or column that has never seen a gradient then has the update 0, not 0 / 0,
    even with `eps = 0`.
    """
    return jnp.where(x == 0, jnp.inf, jnp.sqrt(x))
