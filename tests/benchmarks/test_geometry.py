"""Statistics of benchmarks/geometry: against NumPy, and where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.geometry import run, statistics

V, D, STEPS, B2 = 40, 16, 60, 0.99
KEY = jax.random.key(0)
ROWS = jnp.array([3, 5, V - 1])


def sparse_gradients() -> np.ndarray:
    """Gradients [STEPS, V, D] of rows that are touched with different frequencies."""
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((STEPS, V, D)) * np.exp(rng.standard_normal((V, D)))
    grads[rng.random((STEPS, V)) > np.linspace(0.05, 1, V)] = 0
    return np.float32(grads)


def test_autocorrelation_counts_touches() -> None:
    grads = sparse_gradients()
    history = statistics.history_init(ROWS.size, 2, D)
    for grad in grads:
        history = jax.jit(statistics.history_update)(history, grad[ROWS])
    for i, row in enumerate(ROWS):
        touched = np.float64([g for g in grads[:, row] if g.any()])
        for lag in (1, 2):
            a, b = touched[lag:], touched[:-lag]
            expected = np.sum(a * b) / np.sqrt(np.sum(a**2) * np.sum(b**2))
            actual = statistics.autocorrelation(history)[i, lag - 1]
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
        gram = touched @ touched.T
        expected = (gram.sum() - np.trace(gram)) / (len(gram) - 1) / np.trace(gram)
        actual = statistics.autocorrelation_null(history)[i]
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


def test_second_moment_and_its_factorization() -> None:
    grads = sparse_gradients()
    moment = statistics.second_moment_init(V, D)
    for grad in grads:
        moment = statistics.second_moment_update(moment, grad, jnp.arange(V), B2)
    weights = (1 - B2) * B2 ** np.arange(STEPS)[::-1]
    dense = np.tensordot(weights, np.float64(grads) ** 2, 1)
    np.testing.assert_allclose(moment.dense, dense, rtol=1e-4)
    np.testing.assert_allclose(moment.col, dense.mean(axis=0), rtol=1e-4)
    factored = np.outer(dense.mean(1), dense.mean(0)) / dense.mean()
    logs, divergence = statistics.factorization_error(*moment[:2], run.QUANTILES)
    expected = np.quantile(np.log(factored / dense), run.QUANTILES)
    np.testing.assert_allclose(logs, expected, rtol=1e-3, atol=1e-4)
    expected = np.sum(dense * np.log(dense / factored)) / dense.sum()
    np.testing.assert_allclose(divergence, expected, rtol=1e-3)
    null = statistics.factored_null(KEY, moment)
    assert statistics.factorization_error(null, moment.col, (0.5,))[1] > 0
    exact = jnp.float32(factored)
    assert statistics.factorization_error(exact, moment.col, (0.5,))[1] < 1e-5


def test_steps() -> None:
    steps = statistics.steps_init(2)
    for grad in ([[1.0], [0.0]], [[2.0], [0.0]]):
        steps = statistics.steps_update(
            steps, jnp.array([[3.0], [4.0]]), jnp.array(grad)
        )
    assert [x.tolist() for x in steps] == [[2, 0], [6, 0], [6, 8]]
    # Touched always: 1. Touched for the first time after many steps: the bound.
    step = statistics.expected_step(jnp.array([1.0, 0.0]), jnp.array([10_000] * 2), B2)
    np.testing.assert_allclose(step, [1, (1 - B2) ** -0.5], rtol=1e-5)


def test_lines_and_random_walks() -> None:
    line = jnp.arange(20.0)[:, None, None] * jnp.ones((1, 3, 50))
    np.testing.assert_allclose(statistics.ray_share(line), 1, rtol=1e-5)
    np.testing.assert_allclose(statistics.ray_cosine(line), 1, rtol=1e-5)
    walk = statistics.random_walk(KEY, line)
    lengths = [jnp.linalg.norm(jnp.diff(x, axis=0), axis=2) for x in (line, walk)]
    np.testing.assert_allclose(*lengths, rtol=1e-4)
    assert statistics.ray_share(walk).max() < 0.8
