"""Whether rows move along a line, against random walks of the same steps."""

import jax
import jax.numpy as jnp

from benchmarks.geometry.instrument import _rows


def ray_share(points: jax.Array) -> jax.Array:
    """Returns the share of each trajectory's variance on its first principal component.

    It is 1 for a straight line, at whatever speed, and also for a row that has moved
    once. A random walk has about 6 / pi^2 = 0.61 in many dimensions: compare with
    :func:`random_walk`.

    Args:
      points: [T, S, *D], positions of S rows at T times, such as
        `jnp.stack(snapshots)` with `table[rows]` every few steps.

    Returns:
      float32[S] in (0, 1]; NaN for rows that never moved.

    Raises:
      ValueError: there are less than two times, or an axis is missing.

    References:
      `Token Geometry <https://arxiv.org/abs/2607.01455>`_, 2026, which says that tokens
      move along a ray
    """
    x = _moved(points)
    x = jnp.swapaxes(x - jnp.mean(x, axis=0, keepdims=True), 0, 1)
    times_first = x.shape[1] <= x.shape[2]
    gram = _rows.products("sid,sjd->sij" if times_first else "sti,stj->sij", x, x)
    largest = jnp.linalg.eigvalsh(gram)[:, -1]
    return _rows.ratio(largest, jnp.trace(gram, axis1=1, axis2=2))


def ray_cosine(points: jax.Array) -> jax.Array:
    """Returns the cosine of each step to the whole displacement of its row.

    It is 1 for steps along a ray from the first point. Steps of a random walk have
    about T^-1/2 on average, for they make up the displacement themselves: compare with
    :func:`random_walk`.

    Args:
      points: [T, S, *D], positions of S rows at T times.

    Returns:
      float32[T - 1, S] in [-1, 1]; NaN for steps that did not move a row.

    Raises:
      ValueError: there are less than two times, or an axis is missing.
    """
    x = _moved(points)
    steps, displacement = jnp.diff(x, axis=0), x[-1]
    lengths = jnp.linalg.norm(steps, axis=2)
    lengths = lengths * jnp.linalg.norm(displacement, axis=1)[None, :]
    return _rows.ratio(_rows.products("tsd,sd->ts", steps, displacement), lengths)


def random_walk(key: jax.Array, points: jax.Array) -> jax.Array:
    """Returns trajectories with steps of the same lengths in random directions.

    A row that stands still does so in its random walk. So rare tokens, whose few steps
    lie nearly on a line by themselves, are compared with walks of as few steps.

    Args:
      key: of the random numbers.
      points: [T, S, *D], positions of S rows at T times.

    Returns:
      float32[T, S, D] that start at zero, to give to :func:`ray_share` and
      :func:`ray_cosine`.

    Raises:
      ValueError: there are less than two times, or an axis is missing.
    """
    steps = jnp.diff(_moved(points), axis=0)
    lengths = jnp.linalg.norm(steps, axis=2, keepdims=True)
    directions = jax.random.normal(key, steps.shape, jnp.float32)
    directions /= jnp.linalg.norm(directions, axis=2, keepdims=True)
    walk = jnp.cumsum(lengths * directions, axis=0)
    return jnp.concatenate([jnp.zeros_like(walk[:1]), walk])


def _moved(points: jax.Array) -> jax.Array:
    """Returns float32[T, S, D], how far each row is from where it started."""
    if points.ndim < 3 or points.shape[0] < 2:
        raise ValueError(
            f"points has the shape {points.shape}, but it must be [times, rows, *D]"
            " with at least two times: jnp.stack(snapshots), each of them table[rows]."
        )
    moved = points - points[:1]
    return moved.astype(jnp.float32).reshape(*points.shape[:2], -1)
