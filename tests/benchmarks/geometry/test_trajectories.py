"""Trajectories of rows, against NumPy in float64 and where they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.geometry import instrument as geometry
from tests.benchmarks.geometry.made_up import KEY, D, V

# Read as users may read them, compiled.
random_walk = jax.jit(geometry.random_walk)
ray_cosine = jax.jit(geometry.ray_cosine)
ray_share = jax.jit(geometry.ray_share)


def walk(times: int, rows: int, columns: int, seed: int = 9) -> np.ndarray:
    steps = np.random.default_rng(seed).standard_normal((times, rows, columns))
    return np.cumsum(steps, axis=0)


@pytest.mark.parametrize("times", [5, 20])  # fewer and more than columns
def test_share_of_the_first_component(times: int) -> None:
    points = walk(times, V, D)
    centred = points - points.mean(axis=0)
    variances = [np.linalg.svd(centred[:, i], compute_uv=False) ** 2 for i in range(V)]
    expected = [v[0] / v.sum() for v in variances]
    actual = ray_share(jnp.float32(points))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_cosine_to_the_displacement() -> None:
    points = walk(20, V, D)
    steps, displacement = np.diff(points, axis=0), points[-1] - points[0]
    lengths = np.linalg.norm(steps, axis=2) * np.linalg.norm(displacement, axis=1)
    expected = np.sum(steps * displacement, axis=2) / lengths
    actual = ray_cosine(jnp.float32(points))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


def test_a_line_is_a_line() -> None:
    rng = np.random.default_rng(10)
    along = np.cumsum(rng.random((20, 1, 1, 1)), axis=0)
    start, direction = rng.standard_normal((2, V, 2, D // 2))
    points = jnp.float32(start + along * direction)
    np.testing.assert_allclose(ray_share(points), 1, rtol=1e-5)
    np.testing.assert_allclose(ray_cosine(points), 1, rtol=1e-4)


def test_a_random_walk_is_nearly_two_thirds_a_line() -> None:
    still = jnp.ones((120, 20, 1))
    points = jnp.cumsum(jnp.pad(still, ((0, 0), (0, 0), (0, 255))), axis=0)
    null = random_walk(KEY, points)
    share = ray_share(null)
    np.testing.assert_allclose(share.mean(), 6 / np.pi**2, atol=0.02)
    cosine = jnp.mean(ray_cosine(null))
    np.testing.assert_allclose(cosine, 119**-0.5, rtol=0.05)


def test_the_random_walk_has_the_same_steps() -> None:
    points = walk(20, V, D)
    points[5:10, 3] = points[4, 3]  # stands still
    points[:, 4] = 1  # and this one never moves
    null = random_walk(KEY, jnp.float32(points))
    assert null.shape == points.shape
    lengths = [np.linalg.norm(np.diff(x, axis=0), axis=2) for x in (null, points)]
    np.testing.assert_allclose(*lengths, rtol=1e-4, atol=1e-5)
    directions = np.diff(null, axis=0)[:, 0] / lengths[0][:, 0, None]
    assert np.abs(directions.sum(axis=0)).max() < 5 * np.sqrt(19 / D)
    for statistic in (ray_share, ray_cosine):
        for x in (null, jnp.float32(points)):
            assert np.isnan(statistic(x)[..., 4]).all()
    assert np.isnan(ray_cosine(null)[4:9, 3]).all()
