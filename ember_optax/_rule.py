"""The mathematics of one token table: its factored second moment and its update."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ember_optax._decay import Scalar

# Mean squares above this are left out of the statistics. In float32 a sum of statistics
# below it, over as many as 1e8 columns, is finite and has a normal reciprocal.
MAX_MEAN_SQUARE = 1e30


class TableMoments(NamedTuple):
    """Factored second moment of a token table with V rows."""

    row: jax.Array  # float32[V], one number per token
    col: jax.Array  # float32[*D], one number per entry of a token's vector


class MeanSquares(NamedTuple):
    """Means of the squared gradient of one table."""

    row: jax.Array  # [V], over the columns
    col: jax.Array  # [*D], over the rows


def init_moments(shape: tuple[int, ...], dtype: DTypeLike, axis: int) -> TableMoments:
    """Builds the zero moments of a table.

    Args:
      shape: shape of the table, at least two axes.
      dtype: floating dtype of the table.
      axis: the axis that holds the tokens; all the others are columns.

    Returns:
      Moments in float32, or in float64 for a float64 table: a narrower type cannot
      accumulate with `b2 = 0.999`.
    """
    dtype = jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
    columns = shape[:axis] + shape[axis + 1 :]
    return TableMoments(jnp.zeros(shape[axis], dtype), jnp.zeros(columns, dtype))


def common_dtype(moments: Mapping[str, TableMoments]) -> jnp.dtype:
    """Finds the dtype of numbers that all tables share."""
    is_double = any(table.row.dtype == jnp.float64 for table in moments.values())
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)


def update_moments(
    moments: TableMoments, squares: MeanSquares, one_minus_b2: jax.Array
) -> TableMoments:
    r"""Moves the moments towards the means of the squared gradient.

    .. math::

      row_i &\leftarrow b_2 \, row_i + (1 - b_2) \, mean_j \, g_{ij}^2 \\
      col_j &\leftarrow b_2 \, col_j + (1 - b_2) \, mean_i \, g_{ij}^2

    A mean above `MAX_MEAN_SQUARE` counts as 0, so finite gradients keep the moments
    finite.
    """

    def average(x: jax.Array, mean: jax.Array) -> jax.Array:
        mean = jnp.where(is_too_large(mean), 0, mean).astype(x.dtype)
        gap = one_minus_b2.astype(x.dtype)
        # Below a b2 of 0.5, 1 - gap is exact, and x - gap x would lose a small mean.
        return jnp.where(gap > 0.5, (1 - gap) * x + gap * mean, x + gap * (mean - x))

    return TableMoments(
        average(moments.row, squares.row), average(moments.col, squares.col)
    )


def denominators(
    moments: TableMoments,
    squares: MeanSquares,
    bias_correction: jax.Array,
    column_axes: tuple[str, ...] = (),
) -> TableMoments:
    r"""Computes the factors that rows and columns of a gradient are divided by.

    .. math::

      a_i = \sqrt{row_i}, \quad b_j = \sqrt{\frac{col_j}{mean(col) \, c_t}}

    :math:`(a_i b_j)^2` is the second moment. Two vectors of roots take V + D square
    roots instead of V D, and no product of row and col can underflow.

    Args:
      moments: moments after :func:`update_moments`.
      squares: means of the squared gradient. Where one is too large the factor is
        infinite and the update 0: that row or column takes no part in the step.
      bias_correction: :math:`c_t`, 1 - the product of all b2, which corrects for the
        start at zero.
      column_axes: inside `jax.shard_map`, the mesh axes that columns are sharded over.
    """
    mean = jnp.mean(moments.col)
    if column_axes:
        mean = jax.lax.pmean(mean, column_axes)
    tiny = jnp.finfo(mean.dtype).tiny
    # One division: XLA makes (x / y) / z of two of them x / (y z), which may be 0 / 0.
    # Not jnp.maximum, whose derivative here is 0 times that of a division by tiny^2.
    divisor = mean * bias_correction.astype(mean.dtype)
    factor = moments.col / jnp.where(divisor < tiny, tiny, divisor)

    def root(x: jax.Array, square: jax.Array) -> jax.Array:
        # Select before the root: XLA stores the V + D results of a root, but computes a
        # select again for each of the V x D elements. `tiny` keeps 0 * inf, which is
        # NaN, out of the product of both factors.
        x = jnp.where(is_too_large(square), jnp.inf, jnp.maximum(x, tiny))
        return jnp.sqrt(x)

    return TableMoments(root(moments.row, squares.row), root(factor, squares.col))


def precondition(
    grad: jax.Array,
    factors: TableMoments,
    axis: int,
    eps: Scalar,
    scale: jax.Array | None = None,
) -> jax.Array:
    r"""Computes the update of a table, :math:`scale \, g_{ij} / (a_i b_j + \epsilon)`.

    Args:
      grad: gradient of the table, any floating dtype, with V rows along `axis` and
        columns along all other axes.
      factors: result of :func:`denominators`.
      axis: the axis that holds the tokens.
      eps: added to the root of the second moment.
      scale: factor of the gradient, [] of any floating dtype.

    Returns:
      The update, with the shape of `grad`, in the dtype of the moments.
    """
    dtype = factors.row.dtype
    columns = tuple(a for a in range(grad.ndim) if a != axis)
    row, col = jnp.expand_dims(factors.row, columns), jnp.expand_dims(factors.col, axis)
    grad = grad.astype(dtype)
    if scale is not None:
        grad *= scale.astype(dtype)
    return grad / (row * col + jnp.asarray(eps, dtype))


def is_too_large(mean_square: jax.Array) -> jax.Array:
    """Marks means that would make the moments overflow; NaN passes."""
    return mean_square > MAX_MEAN_SQUARE


def scale_squares(squares: MeanSquares, scale: jax.Array) -> MeanSquares:
    """Computes the mean squares of a gradient that is multiplied by `scale`."""

    def scaled(x: jax.Array) -> jax.Array:
        factor = scale.astype(x.dtype)
        # Keep overflow infinite: the norm is then infinite and the scale 0, and
        # inf * 0 is NaN.
        return jnp.where(jnp.isinf(x), x, x * factor * factor)

    return MeanSquares(scaled(squares.row), scaled(squares.col))


def factor_moment(nu: jax.Array, axis: int, dtype: DTypeLike) -> TableMoments:
    """Averages a dense second moment over columns and over rows.

    Args:
      nu: second moment of a table, any floating dtype.
      axis: the axis that holds the tokens.
      dtype: dtype of the result.
    """
    columns = tuple(a for a in range(nu.ndim) if a != axis)
    return TableMoments(
        jnp.mean(nu, axis=columns, dtype=dtype), jnp.mean(nu, axis=axis, dtype=dtype)
    )


def expand_moment(moments: TableMoments, axis: int) -> jax.Array:
    """Computes the dense second moment row_i col_j / mean(col).

    Args:
      moments: factored second moment.
      axis: the axis of the result that holds the tokens.
    """
    row, col = moments
    columns = tuple(a for a in range(col.ndim + 1) if a != axis)
    factor = col / jnp.maximum(jnp.mean(col), jnp.finfo(col.dtype).tiny)
    return jnp.expand_dims(row, columns) * jnp.expand_dims(factor, axis)
