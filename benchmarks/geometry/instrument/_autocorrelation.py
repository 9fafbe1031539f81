"""How much a gradient of a row resembles the row's last ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.geometry.instrument import _rows


class GradientHistory(NamedTuple):
    """The last gradients of S rows, and sums over all pairs that lie a lag apart."""

    rows: jax.Array  # int32[S], which rows these are
    touches: jax.Array  # int32[S], how often they have had a gradient
    recent: jax.Array  # float32[S, K, D], their last K gradients, the newest first
    products: jax.Array  # float32[S, K], sum of <g_t, g_{t-k}> for k = 1 ... K
    squares_after: jax.Array  # float32[S, K], sum of |g_t|^2 over the same pairs
    squares_before: jax.Array  # float32[S, K], sum of |g_{t-k}|^2
    total: jax.Array  # float32[S, D], sum of g_t
    square: jax.Array  # float32[S], sum of |g_t|^2


def history_init(table: jax.Array, rows: jax.Array, lags: int) -> GradientHistory:
    """Returns the history before the first step.

    Args:
      table: [V, *D]; its shape is enough.
      rows: integers [S], the rows to follow. Memory is S (K + 1) D floats.
      lags: K, the longest lag, counted in touches of a row and not in steps.

    Raises:
      ValueError: `table` has no columns, `rows` are no list of integers, or `lags` is
        not positive.
    """
    _rows.check_rows(table, rows)
    if lags < 1:
        raise ValueError(f"lags is {lags}, but it must be at least 1, the last touch.")
    n_rows, columns = rows.size, table.size // table.shape[0]
    return GradientHistory(
        rows=jnp.array(rows, jnp.int32),
        touches=jnp.zeros(n_rows, jnp.int32),
        recent=_rows.zeros(n_rows, lags, columns),
        products=_rows.zeros(n_rows, lags),
        squares_after=_rows.zeros(n_rows, lags),
        squares_before=_rows.zeros(n_rows, lags),
        total=_rows.zeros(n_rows, columns),
        square=_rows.zeros(n_rows),
    )


def history_update(history: GradientHistory, grads: jax.Array) -> GradientHistory:
    """Adds the gradient of a step. Rows whose gradient is zero stay as they are.

    Args:
      history: that of the steps before.
      grads: [V, *D], gradient of the whole table, any floating dtype.

    Raises:
      ValueError: `grads` has other columns than the table.
    """
    _, lags, columns = history.recent.shape
    grad = _rows.take(grads, history.rows)
    _rows.check_shape("A row of grads", grad.shape[1:], (columns,), "this state")
    touched = jnp.any(grad != 0, axis=1)
    square = jnp.sum(grad * grad, axis=1)
    # Slots that no gradient has filled yet are zero and make no pair.
    filled = history.touches[:, None] > jnp.arange(lags)[None, :]
    pair = filled & touched[:, None]
    products = _rows.products("sd,skd->sk", grad, history.recent)
    before = jnp.sum(jnp.square(history.recent), axis=2)
    pushed = jnp.concatenate([grad[:, None], history.recent[:, :-1]], axis=1)
    return GradientHistory(
        rows=history.rows,
        touches=history.touches + touched.astype(jnp.int32),
        recent=jnp.where(touched[:, None, None], pushed, history.recent),
        products=history.products + products,
        squares_after=history.squares_after + jnp.where(pair, square[:, None], 0),
        squares_before=history.squares_before + jnp.where(pair, before, 0),
        total=history.total + grad,
        square=history.square + square,
    )


def autocorrelation(history: GradientHistory) -> jax.Array:
    r"""Returns the autocorrelation of each row's gradients, given that it was touched.

    .. math::

      \rho_k = \sum_t \langle g_t, g_{t-k} \rangle \Big/
        \sqrt{\sum_t |g_t|^2 \sum_t |g_{t-k}|^2}

    t counts the touches of the row. The mean is not subtracted: what a first moment
    could collect is the question, whether from drift or from memory.

    Returns:
      float32[S, K] in [-1, 1] for the lags 1 ... K; NaN for rows with too few touches.
    """
    roots = jnp.sqrt(history.squares_after) * jnp.sqrt(history.squares_before)
    return _rows.ratio(history.products, roots)


def autocorrelation_null(history: GradientHistory) -> jax.Array:
    r"""Returns what the same gradients give in a random order.

    The mean of :math:`\langle g_t, g_s \rangle` over all pairs, by the mean of
    :math:`|g_t|^2`. It is zero where gradients have no common direction; an
    autocorrelation above it is memory and not drift.

    Returns:
      float32[S], the same for all lags; NaN for rows with less than two touches.
    """
    products = jnp.sum(jnp.square(history.total), axis=1) - history.square
    others = (history.touches - 1).astype(jnp.float32)
    return _rows.ratio(products, jnp.maximum(others, 0) * history.square)
