"""The mathematics of one token table: its factored second moment and its update."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ember_optax._decay import Decay, Scalar
from ember_optax._mesh import AxisNames
from ember_optax._reduce import Sums

ColumnMean = Literal["all", "active"]


class TableMoments(NamedTuple):
    """Factored second moment of a token table with V rows."""

    row: jax.Array  # float32[V], one number per token
    col: jax.Array  # float32[*D], one number per place in a token's vector


class Rule(NamedTuple):
    """Ember's rule for one table, with what is fixed when the optimizer is built."""

    eps: Scalar  # added to the root of the second moment
    column_mean: ColumnMean = "all"  # over which rows a column averages
    names: AxisNames = AxisNames()  # mesh axes of the table inside jax.shard_map

    def move(self, moments: TableMoments, sums: Sums, decay: Decay) -> TableMoments:
        r"""Moves the moments towards the means of the squared gradient.

        .. math::

          row_i &\leftarrow b_2 \, row_i + (1 - b_2) \, mean_j \, g_{ij}^2 \\
          col_j &\leftarrow b_2 \, col_j + (1 - b_2) \, mean_i \, g_{ij}^2

        To a row or column whose sum overflows, this step is one without a gradient.

        Args:
          moments: moments before the step.
          sums: row and column sums of the squared gradient.
          decay: of this step.
        """
        dtype = moments.row.dtype
        overflow = self.overflow(moments, sums)
        sums = Sums(*(jnp.where(o, 0, s) for o, s in zip(overflow, sums, strict=True)))
        n_columns = _size(moments.col, self.names.columns)
        if self.column_mean == "all":
            n_rows = _size(moments.row, self.names.rows)
        else:
            active = _total(jnp.count_nonzero(sums.row), self.names.rows)
            n_rows = jnp.maximum(active, 1).astype(dtype)
        b2, rate = decay.b2.astype(dtype), decay.rate.astype(dtype)
        return TableMoments(
            move(moments.row, rate * (sums.row.astype(dtype) / n_columns), b2, rate),
            move(moments.col, rate * (sums.col.astype(dtype) / n_rows), b2, rate),
        )

    def roots(self, moments: TableMoments, sums: Sums, decay: Decay) -> TableMoments:
        r"""Returns what rows and columns of a gradient are divided by.

        .. math::

          a_i = \sqrt{row_i}, \quad b_j = \sqrt{\frac{col_j}{mean(col) \, c_t}}

        so that the second moment is their square, without a product that underflows;
        :math:`c_t` corrects for the start at zero.
        With `column_mean="active"` mean(row) takes the place of mean(col). Where a sum
        of squares overflows, the root is that of the largest number.

        Args:
          moments: moments after :meth:`move`.
          sums: row and column sums of the squared gradient.
          decay: of this step.
        """
        row, col = moments
        dtype = row.dtype
        if self.column_mean == "all":
            total = _total(jnp.sum(col), self.names.columns)
            n = _size(col, self.names.columns)
        else:
            total = _total(jnp.sum(row), self.names.rows)
            n = _size(row, self.names.rows)
        factor = share(col, total) * (n / decay.correction.astype(dtype))
        eps = jnp.asarray(self.eps, dtype)
        overflow = self.overflow(moments, sums)
        return TableMoments(
            root(row, eps, overflow.row), root(factor, eps, overflow.col)
        )

    def precondition(
        self,
        grad: jax.Array,
        roots: TableMoments,
        axis: int,
        scale: jax.Array | None = None,
    ) -> jax.Array:
        r"""Returns the update of a table, :math:`g_{ij} / (a_i b_j + \epsilon)`.

        Args:
          grad: gradient of the table, any floating dtype, with V rows along `axis` and
            columns along all other axes.
          roots: of :meth:`roots`.
          axis: the axis that holds the tokens.
          scale: what to multiply the gradient with first, if anything.

        Returns:
          The update, with the shape and dtype of `grad`.
        """
        dtype = roots.row.dtype
        columns = tuple(a for a in range(grad.ndim) if a != axis)
        row, col = jnp.expand_dims(roots.row, columns), jnp.expand_dims(roots.col, axis)
        update = grad.astype(dtype)
        if scale is not None:
            update *= scale.astype(dtype)
        update /= row * col + jnp.asarray(self.eps, dtype)
        return update.astype(grad.dtype)

    def overflow(self, moments: TableMoments, sums: Sums) -> Sums:
        """Returns which sums of squares are too large for finite statistics."""
        n_rows = _size(moments.row, self.names.rows)
        n_columns = _size(moments.col, self.names.columns)
        if self.column_mean == "active":
            n_rows, n_columns = n_columns, n_rows
        limit = largest_sum(n_rows, n_columns, moments.row.dtype)
        return Sums(sums.row > limit, sums.col > limit)


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


def common_dtype(moments: Mapping[str, TableMoments]) -> jnp.dtype:
    """Returns the dtype of what all tables share."""
    is_double = any(table.row.dtype == jnp.float64 for table in moments.values())
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)


def move(
    statistic: jax.Array, gain: jax.Array, b2: jax.Array, rate: jax.Array
) -> jax.Array:
    """Returns `b2 * statistic + gain`, where `rate` is 1 - b2."""
    lost = rate * statistic
    left = statistic - lost
    # Steps that are almost alike are rounded alike, and over a long run that adds up:
    # what `left` was rounded by goes into the sum, where the gain blurs it.
    error = (statistic - left) - lost
    # Of b2 and 1 - b2, the smaller one has more digits. What is lost may be too small.
    is_slow = (rate < 0.5) & (lost >= jnp.finfo(lost.dtype).tiny)
    left = jnp.where(is_slow, left, b2 * statistic)
    return left + (gain + jnp.where(is_slow, error, 0))


def share(x: jax.Array, total: jax.Array) -> jax.Array:
    """Returns x / total, or 0 where the total is.

    A sum stays in the range of its terms, where a mean may be too small for it.
    """
    # XLA multiplies by the reciprocal, which must not be subnormal.
    scale = jnp.where(total > 1, 2.0**-8, 1).astype(x.dtype)
    return (scale * x) / jnp.where(total == 0, 1, scale * total)


def largest_sum(n: int, n_places: int, dtype: DTypeLike) -> float:
    """Returns the largest sum of squares that leaves statistics and their sum finite.

    Args:
      n: what a sum is divided by to be the mean of a statistic, such as V for columns.
      n_places: of the statistic that the rule sums up, such as D for columns.
      dtype: of the sums.
    """
    return float(jnp.finfo(dtype).max) / 2 * min(1, n / n_places)


def root(x: jax.Array, eps: jax.Array, overflow: jax.Array) -> jax.Array:
    """Returns sqrt(x), the largest root on overflow, and next to 0 or infinity for 0.

    A statistic of 0 belongs to gradients that are 0, or whose squares are too small for
    its dtype. In the denominator those gradients are nothing compared with any usual
    eps; without one, a large root makes their update 0 instead of 0 / 0.

    Args:
      x: statistic of rows or of columns.
      eps: what is added to the product of their roots.
      overflow: where the sum of squares behind the statistic overflows.
    """
    info = jnp.finfo(x.dtype)
    at_zero = jnp.where(eps > 1e-12, info.tiny, 2.0 ** (info.maxexp - 8))
    # XLA keeps the result of a root, where it would select again for each element.
    x = jnp.where(x == 0, at_zero.astype(x.dtype), x)
    return jnp.sqrt(jnp.where(overflow, info.max, x))


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
    columns = tuple(a for a in range(col.ndim + 1) if a != axis)
    factor = share(col, jnp.sum(row)) * row.size
    nu = jnp.expand_dims(scale * row, columns) * jnp.expand_dims(factor, axis)
    return saturate(nu)


def saturate(x: jax.Array) -> jax.Array:
    """Returns x, and the largest number for infinity."""
    return jnp.minimum(x, jnp.finfo(x.dtype).max)


def _size(x: jax.Array, names: tuple[str, ...]) -> int:
    return x.size * jax.lax.axis_size(names) if names else x.size


def _total(x: jax.Array, names: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, names) if names else x
