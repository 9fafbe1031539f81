"""The mathematics of one token table: its factored second moment and its update."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ember_optax._mesh import AxisNames
from ember_optax._reduce import Sums

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


def update_moments(
    moments: TableMoments,
    sums: Sums,
    *,
    b2: float | jax.Array,
    column_mean: ColumnMean,
    names: AxisNames | None,
) -> TableMoments:
    r"""Moves the moments towards the means of the squared gradient.

    .. math::

      row_i &\leftarrow b_2 \, row_i + (1 - b_2) \, mean_j \, g_{ij}^2 \\
      col_j &\leftarrow b_2 \, col_j + (1 - b_2) \, mean_i \, g_{ij}^2

    Args:
      moments: moments before the step.
      sums: row and column sums of the squared gradient.
      b2: decay of both statistics, in [0, 1).
      column_mean: `"all"` averages a column over all rows, `"active"` over those with
        a gradient.
      names: inside `jax.shard_map`, the mesh axes of rows and columns.
    """
    dtype = moments.row.dtype
    n_columns = moments.col.size * _n_shards(names and names.columns)
    if column_mean == "all":
        n_rows = moments.row.size * _n_shards(names and names.rows)
    else:
        n_rows = jnp.count_nonzero(sums.row)
        if names and names.rows:
            n_rows = jax.lax.psum(n_rows, names.rows)
        n_rows = jnp.maximum(n_rows, 1).astype(dtype)
    # 1 - b2 and not b2 is what must be exact: float32(0.999) is off by 1.3e-5 of 0.001.
    rate = jnp.asarray(1 - b2, dtype)
    return TableMoments(
        move(moments.row, sums.row.astype(dtype) / n_columns, rate),
        move(moments.col, sums.col.astype(dtype) / n_rows, rate),
    )


def move(statistic: jax.Array, mean: jax.Array, rate: jax.Array) -> jax.Array:
    """Moves a statistic towards the mean of a step, by `rate` = 1 - b2 of the way."""
    return statistic - rate * statistic + rate * mean


def precondition(
    grad: jax.Array,
    moments: TableMoments,
    count: jax.Array,
    *,
    axis: int,
    b2: float | jax.Array,
    eps: float | jax.Array,
    column_mean: ColumnMean,
    names: AxisNames | None,
) -> jax.Array:
    r"""Divides a gradient by the root of the factored second moment.

    .. math::

      \hat v_{ij} = \frac{row_i \, col_j}{mean(col) \, (1 - b_2^t)}, \quad
      u_{ij} = g_{ij} / (\sqrt{\hat v_{ij}} + \epsilon)

    Args:
      grad: gradient of the table, any floating dtype, with V rows along `axis` and
        columns along all other axes.
      moments: moments after :func:`update_moments`.
      count: int32 scalar, the number t of this step, counted from 1.
      axis: the axis that holds the tokens.
      b2: decay of both statistics, in [0, 1).
      eps: added to the root, not below it.
      column_mean: with `"active"` the scale is mean(row) instead of mean(col).
      names: inside `jax.shard_map`, the mesh axes of rows and columns.

    Returns:
      The update u, with the shape and dtype of `grad`.
    """
    row, col = moments
    dtype = row.dtype
    if column_mean == "all":
        scale = _mean(col, names and names.columns)
    else:
        scale = _mean(row, names and names.rows)
    scale = scale * bias_correction(b2, count, dtype)
    col_factor = col / jnp.maximum(scale, jnp.finfo(dtype).tiny)

    # Taking roots before the product costs V + D of them and cannot underflow.
    columns = tuple(a for a in range(grad.ndim) if a != axis)
    row_root = jnp.expand_dims(root(row), columns)
    col_root = jnp.expand_dims(root(col_factor), axis)
    update = grad.astype(dtype) / (row_root * col_root + jnp.asarray(eps, dtype))
    return update.astype(grad.dtype)


def bias_correction(
    b2: float | jax.Array, count: jax.Array, dtype: DTypeLike
) -> jax.Array:
    """Returns 1 - b2^t, by which a mean of t steps that began at 0 is too small.

    Args:
      b2: decay of the mean, in [0, 1).
      count: int32 scalar, t.
      dtype: floating dtype of the result.
    """
    decayed = count.astype(dtype) * jnp.log1p(-jnp.asarray(1 - b2, dtype))
    return -jnp.expm1(decayed)


def fold(nu: jax.Array, scale: jax.Array, axis: int) -> TableMoments:
    """Returns the means of a dense second moment over columns and over rows.

    Args:
      nu: second moment of a table, any floating dtype.
      scale: what to multiply with, in the dtype of the result.
      axis: the axis that holds the tokens.
    """
    columns = tuple(a for a in range(nu.ndim) if a != axis)
    row = jnp.mean(nu, axis=columns, dtype=scale.dtype)
    return TableMoments(scale * row, scale * jnp.mean(nu, axis=axis, dtype=scale.dtype))


def unfold(moments: TableMoments, scale: jax.Array, axis: int) -> jax.Array:
    """Returns the dense second moment row_i col_j / mean(row), of which `fold` is.

    With `column_mean="active"` the scale is mean(row); else mean(col), which is equal.

    Args:
      moments: of a table.
      scale: what to multiply with, in their dtype.
      axis: the axis that is to hold the tokens.
    """
    row, col = moments
    mean = jnp.maximum(jnp.mean(row), jnp.finfo(row.dtype).tiny)
    columns = tuple(a for a in range(col.ndim + 1) if a != axis)
    row = jnp.expand_dims(scale * row, columns)
    return row * jnp.expand_dims(col / mean, axis)


def _n_shards(names: tuple[str, ...] | None) -> int:
    return jax.lax.axis_size(names) if names else 1


def _mean(x: jax.Array, names: tuple[str, ...] | None) -> jax.Array:
    mean = jnp.mean(x)
    return jax.lax.pmean(mean, names) if names else mean


def root(x: jax.Array) -> jax.Array:
    """Returns sqrt(x), or infinity where x is 0.

    A row or column that has never seen a gradient then has the update 0, not 0 / 0,
    even with `eps = 0`.
    """
    return jnp.where(x == 0, jnp.inf, jnp.sqrt(x))
