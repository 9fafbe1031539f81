"""How far a dense second moment is from row x col, on a sample of rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from benchmarks.geometry.instrument import _rows


class SecondMoment(NamedTuple):
    """Adam's second moment of S rows, and Ember's columns of the whole table."""

    rows: jax.Array  # int32[S], which rows these are
    dense: jax.Array  # float32[S, D], moving average of G^2
    col: jax.Array  # float32[D], its mean over all V rows
    repeats: jax.Array  # float32[S], chance that two draws of `dense` are one step's


class FactorizationError(NamedTuple):
    """How far a table of positive numbers is from row x col."""

    log_ratio: jax.Array  # float32[Q], quantiles of log(row x col / dense)
    divergence: jax.Array  # float32[], I-divergence as a share of the sum


def second_moment_init(table: jax.Array, rows: jax.Array) -> SecondMoment:
    """Returns the second moment before the first step.

    Args:
      table: [V, *D]; its shape is enough.
      rows: integers [S], the rows to follow. Memory is S D + D floats.

    Raises:
      ValueError: `table` has no columns or `rows` are no list of integers.
    """
    _rows.check_rows(table, rows)
    columns = table.size // table.shape[0]
    return SecondMoment(
        rows=jnp.array(rows, jnp.int32),
        dense=_rows.zeros(rows.size, columns),
        col=_rows.zeros(columns),
        repeats=_rows.zeros(rows.size),
    )


def second_moment_update(
    moment: SecondMoment, grads: jax.Array, b2: ArrayLike = 0.999
) -> SecondMoment:
    """Moves the second moment towards the square of the gradient of a step.

    Args:
      moment: that of the steps before.
      grads: [V, *D], gradient of the whole table, any floating dtype.
      b2: decay, in [0, 1).

    Raises:
      ValueError: `grads` has other columns than the table.
    """
    square = jnp.square(_rows.take(grads, moment.rows))
    _rows.check_shape(
        "A row of grads", square.shape[1:], moment.col.shape, "this state"
    )
    col = jnp.mean(jnp.square(grads.astype(jnp.float32)), axis=0)
    col = _rows.replicated(col).reshape(-1)
    rate = jnp.asarray(1 - b2, jnp.float32)
    dense = moment.dense - rate * moment.dense + rate * square
    # The share of this step in each row; of shares and not of squares, which underflow.
    share = _rows.ratio(rate * jnp.mean(square, axis=1), jnp.mean(dense, axis=1))
    share = jnp.nan_to_num(share)
    return SecondMoment(
        rows=moment.rows,
        dense=dense,
        col=moment.col - rate * moment.col + rate * col,
        repeats=jnp.square(1 - share) * moment.repeats + jnp.square(share),
    )


def factorization_error(
    dense: jax.Array,
    col: jax.Array,
    quantiles: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
) -> FactorizationError:
    r"""Compares a second moment v with Ember's f = row x col / mean(col).

    row is the mean of v over its columns, as Ember's is at every step. The I-divergence
    is :math:`\sum (v \log (v / f) - v + f) / \sum v`; of all products of a row and a
    column, f has the smallest where `dense` is the whole table.

    Args:
      dense: [S, D], not negative, any floating dtype: :attr:`SecondMoment.dense`, or
        rows of Adam's `nu`.
      col: [D], :attr:`SecondMoment.col`, or Ember's; `dense.mean(0)` where that is the
        whole table; ones to see how well rows do alone.
      quantiles: which ones of log(f / v) to return, each in [0, 1]. An update is off by
        the factor exp(-log(f / v) / 2).

    Returns:
      A :class:`FactorizationError` over all cells that are not zero.

    Raises:
      ValueError: the shapes do not fit each other.

    References:
      `Adafactor <https://arxiv.org/abs/1804.04235>`_, 2018, Lemma 1
    """
    _rows.check_table("dense", dense)
    _rows.check_shape("col", col.shape, dense.shape[1:], "these rows")
    dense, col = dense.astype(jnp.float32), col.astype(jnp.float32)
    row = jnp.mean(dense, axis=1)
    factored = row[:, None] * (col / jnp.mean(col))[None, :]
    log_ratio = jnp.log(factored) - jnp.log(dense)
    log_ratio = jnp.where(dense > 0, log_ratio, jnp.nan)
    excess = jnp.where(dense > 0, -dense * log_ratio, 0) - dense + factored
    return FactorizationError(
        log_ratio=jnp.nanquantile(log_ratio, jnp.array(quantiles, jnp.float32)),
        divergence=_rows.ratio(jnp.sum(excess), jnp.sum(dense)),
    )


def factored_null(key: jax.Array, moment: SecondMoment) -> jax.Array:
    """Draws the second moment that gradients of an exactly factored one would leave.

    A moving average over few touches of a row is noisy whatever lies behind it: with
    normal gradients it is row x col times a chi-square variable by its degrees of
    freedom. Their number is how many touches the average of the row amounts to, the
    sum of their weights squared over the sum of the squares (Kish, Satterthwaite).

    Args:
      key: of the random numbers.
      moment: whose rows, columns and touches to keep.

    Returns:
      float32[S, D], to give to :func:`factorization_error` with `moment.col`.
    """
    row = jnp.mean(moment.dense, axis=1)
    factored = row[:, None] * (moment.col / jnp.mean(moment.col))[None, :]
    # Means over the columns are noisy too, which makes equal touches look unequal.
    noise = 2 * jnp.sum(jnp.square(moment.col)) / jnp.square(jnp.sum(moment.col))
    repeats = moment.repeats / (1 + noise * (1 - moment.repeats))
    half = 0.5 / jnp.where(repeats > 0, repeats, 1)[:, None]
    return factored * jax.random.gamma(key, half, factored.shape, jnp.float32) / half


def shuffled_null(key: jax.Array, dense: jax.Array) -> jax.Array:
    """Returns the same cells in random places: no row and no column is left.

    Args:
      key: of the random numbers.
      dense: [S, D].

    Returns:
      [S, D], to give to :func:`factorization_error` with its own `mean(0)`.
    """
    return jax.random.permutation(key, dense.ravel()).reshape(dense.shape)
