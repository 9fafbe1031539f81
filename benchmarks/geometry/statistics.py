"""Statistics of gradients and rows of token tables, each with a null model.

Tables and gradients are [V, D], one row per token. S rows of a table are followed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class History(NamedTuple):
    """The last K gradients of S rows, and sums over pairs that are k touches apart."""

    touches: jax.Array  # int32[S], steps in which a row had a gradient
    recent: jax.Array  # [S, K, D], the newest first
    products: jax.Array  # [S, K], sum of <g_t, g_{t-k}> for k = 1 ... K
    squares_after: jax.Array  # [S, K], sum of |g_t|^2 over the same pairs
    squares_before: jax.Array  # [S, K], sum of |g_{t-k}|^2
    total: jax.Array  # [S, D], sum of g_t
    square: jax.Array  # [S], sum of |g_t|^2


def history_init(n_rows: int, lags: int, columns: int) -> History:
    return History(
        touches=jnp.zeros(n_rows, jnp.int32),
        recent=jnp.zeros((n_rows, lags, columns)),
        products=jnp.zeros((n_rows, lags)),
        squares_after=jnp.zeros((n_rows, lags)),
        squares_before=jnp.zeros((n_rows, lags)),
        total=jnp.zeros((n_rows, columns)),
        square=jnp.zeros(n_rows),
    )


def history_update(history: History, grad: jax.Array) -> History:
    """Adds the gradients [S, D] of a step. Rows with a zero gradient do not change."""
    touched = jnp.any(grad != 0, axis=1)
    square = jnp.sum(grad * grad, axis=1)
    # A pair needs a slot that an earlier gradient has filled.
    filled = history.touches[:, None] > jnp.arange(history.recent.shape[1])[None, :]
    pair = filled & touched[:, None]
    before = jnp.sum(jnp.square(history.recent), axis=2)
    pushed = jnp.concatenate([grad[:, None], history.recent[:, :-1]], axis=1)
    return History(
        touches=history.touches + touched.astype(jnp.int32),
        recent=jnp.where(touched[:, None, None], pushed, history.recent),
        products=history.products + jnp.einsum("sd,skd->sk", grad, history.recent),
        squares_after=history.squares_after + jnp.where(pair, square[:, None], 0),
        squares_before=history.squares_before + jnp.where(pair, before, 0),
        total=history.total + grad,
        square=history.square + square,
    )


def autocorrelation(history: History) -> jax.Array:
    """Returns the autocorrelation of each row's gradients [S, K]; lags count touches.

    The mean is not subtracted, because a first moment would collect it as well.
    """
    roots = jnp.sqrt(history.squares_after) * jnp.sqrt(history.squares_before)
    return ratio(history.products, roots)


def autocorrelation_null(history: History) -> jax.Array:
    """Returns the autocorrelation [S] of the same gradients in random order."""
    products = jnp.sum(jnp.square(history.total), axis=1) - history.square
    others = jnp.maximum(history.touches - 1, 0).astype(jnp.float32)
    return ratio(products, others * history.square)


class SecondMoment(NamedTuple):
    """Adam's second moment of S rows, and Ember's column moment of the whole table."""

    dense: jax.Array  # [S, D], moving average of the squared gradient
    col: jax.Array  # [D], the same, mean over all V rows
    repeats: jax.Array  # [S], probability that two draws of `dense` are of one step


def second_moment_init(n_rows: int, columns: int) -> SecondMoment:
    return SecondMoment(
        jnp.zeros((n_rows, columns)), jnp.zeros(columns), jnp.zeros(n_rows)
    )


def second_moment_update(
    moment: SecondMoment, grads: jax.Array, rows: jax.Array, b2: float
) -> SecondMoment:
    """Adds the gradients [V, D] of a step; `rows` are the S rows that are followed."""
    square = jnp.square(grads[rows])
    col = jnp.mean(jnp.square(grads), axis=0)
    dense = moment.dense - (1 - b2) * moment.dense + (1 - b2) * square
    # The share of this step in each row.
    share = (1 - b2) * jnp.mean(square, axis=1)
    share = jnp.nan_to_num(ratio(share, jnp.mean(dense, axis=1)))
    return SecondMoment(
        dense=dense,
        col=moment.col - (1 - b2) * moment.col + (1 - b2) * col,
        repeats=jnp.square(1 - share) * moment.repeats + jnp.square(share),
    )


def factorization_error(
    dense: jax.Array, col: jax.Array, quantiles: tuple[float, ...]
) -> tuple[jax.Array, jax.Array]:
    """Compares a second moment v with Ember's f = row x col / mean(col).

    Returns:
      Quantiles of log(f / v), and the I-divergence sum(v log(v / f) - v + f) / sum(v).
      The factored f minimizes the divergence (Adafactor, arXiv 1804.04235, Lemma 1).
    """
    factored = jnp.mean(dense, axis=1)[:, None] * (col / jnp.mean(col))[None, :]
    log_ratio = jnp.log(factored) - jnp.log(dense)
    log_ratio = jnp.where(dense > 0, log_ratio, jnp.nan)
    excess = jnp.where(dense > 0, -dense * log_ratio, 0) - dense + factored
    return (
        jnp.nanquantile(log_ratio, jnp.array(quantiles)),
        ratio(jnp.sum(excess), jnp.sum(dense)),
    )


def factored_null(key: jax.Array, moment: SecondMoment) -> jax.Array:
    """Draws the second moment [S, D] of normal gradients with an exactly factored one.

    A moving average over few touches is noisy: it is row x col times a chi-square
    variable by its degrees of freedom, the effective number of touches (the squared sum
    of their weights over the sum of squares; Kish, Satterthwaite).
    """
    row = jnp.mean(moment.dense, axis=1)
    factored = row[:, None] * (moment.col / jnp.mean(moment.col))[None, :]
    # Means over the columns are noisy as well, so equal touches look unequal.
    noise = 2 * jnp.sum(jnp.square(moment.col)) / jnp.square(jnp.sum(moment.col))
    repeats = moment.repeats / (1 + noise * (1 - moment.repeats))
    half = 0.5 / jnp.where(repeats > 0, repeats, 1)[:, None]
    return factored * jax.random.gamma(key, half, factored.shape) / half


class Steps(NamedTuple):
    """Sums over the steps of each row; sizes are root mean squares over columns."""

    touches: jax.Array  # int32[V], steps in which the row had a gradient
    touched: jax.Array  # [V], sum of the sizes of these steps
    path: jax.Array  # [V], sum of the sizes of all steps


def steps_init(n_rows: int) -> Steps:
    return Steps(jnp.zeros(n_rows, jnp.int32), jnp.zeros(n_rows), jnp.zeros(n_rows))


def steps_update(steps: Steps, updates: jax.Array, grads: jax.Array) -> Steps:
    """Adds a step: updates [V, D] in units of the learning rate, and gradients."""
    size = jnp.sqrt(jnp.mean(jnp.square(updates), axis=1))
    touched = jnp.any(grads != 0, axis=1)
    return Steps(
        touches=steps.touches + touched.astype(jnp.int32),
        touched=steps.touched + jnp.where(touched, size, 0),
        path=steps.path + size,
    )


def expected_step(probability: jax.Array, count: jax.Array, b2: float) -> jax.Array:
    r"""Returns the step of a row with gradients of one size at random times.

    .. math::

      \sqrt{\frac{1 - b_2^t}{(1 - b_2) + b_2 (1 - b_2^{t-1}) p}}

    in units of the learning rate, for Ember, and for Adam without a first moment.

    Args:
      probability: p, probability that a step touches the row.
      count: t, number of the step, from 1.
      b2: decay of the second moment.
    """
    t = count.astype(jnp.float32)
    before = probability * (1 - b2 ** (t - 1))
    return jnp.sqrt((1 - b2**t) / ((1 - b2) + b2 * before))


def ray_share(points: jax.Array) -> jax.Array:
    """Returns the share of variance [S] on the first principal component.

    It is 1 for a straight line, and for a row that has moved once.

    Args:
      points: [T, S, D], positions of S rows at T times.
    """
    x = points - points[:1]
    x = jnp.swapaxes(x - jnp.mean(x, axis=0, keepdims=True), 0, 1)
    gram = jnp.einsum("sid,sjd->sij", x, x)
    return ratio(jnp.linalg.eigvalsh(gram)[:, -1], jnp.trace(gram, axis1=1, axis2=2))


def ray_cosine(points: jax.Array) -> jax.Array:
    """Returns the cosine [T - 1, S] of each step to the displacement of its row."""
    steps, displacement = jnp.diff(points, axis=0), points[-1] - points[0]
    lengths = jnp.linalg.norm(steps, axis=2)
    lengths *= jnp.linalg.norm(displacement, axis=1)[None, :]
    return ratio(jnp.einsum("tsd,sd->ts", steps, displacement), lengths)


def random_walk(key: jax.Array, points: jax.Array) -> jax.Array:
    """Returns points [T, S, D] with steps of the same lengths in random directions."""
    steps = jnp.diff(points, axis=0)
    lengths = jnp.linalg.norm(steps, axis=2, keepdims=True)
    directions = jax.random.normal(key, steps.shape)
    directions /= jnp.linalg.norm(directions, axis=2, keepdims=True)
    walk = jnp.cumsum(lengths * directions, axis=0)
    return jnp.concatenate([jnp.zeros_like(walk[:1]), walk])


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a / b, and NaN where b is 0."""
    return jnp.where(b == 0, jnp.nan, a / jnp.where(b == 0, 1, b))
