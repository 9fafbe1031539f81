"""Autocorrelation of gradients, against NumPy in float64 and where it is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.geometry import instrument as geometry
from tests.benchmarks.geometry.made_up import EVERY_ROW, D, V, fold, sparse_gradients

# Read as users may read them, compiled.
autocorrelation = jax.jit(geometry.autocorrelation)
autocorrelation_null = jax.jit(geometry.autocorrelation_null)


def history_of(grads: Any, rows: Any = EVERY_ROW, lags: int = 3) -> Any:
    init = geometry.history_init(grads[0], rows, lags)
    return fold(geometry.history_update, init, grads)


def autocorrelation_of(touched: np.ndarray, lags: int) -> list[float]:
    """Of the gradients [n, D] of one row."""
    found = []
    for k in range(1, lags + 1):
        if len(touched) <= k:
            found.append(np.nan)
            continue
        after, before = touched[k:], touched[:-k]
        found.append(
            np.sum(after * before) / np.sqrt(np.sum(after**2) * np.sum(before**2))
        )
    return found


def touched_gradients(grads: np.ndarray, row: int) -> np.ndarray:
    of_row = np.float64(grads)[:, row].reshape(len(grads), -1)
    return of_row[of_row.any(axis=1)]


@pytest.mark.parametrize("shape", [(V, D), (V, 2, D // 2)])
def test_autocorrelation_is_that_of_the_touches(shape: Any) -> None:
    grads = sparse_gradients(60, shape)
    rows = jnp.array([0, 1, 7, V - 1])
    history = history_of(grads, rows)
    expected = [
        autocorrelation_of(touched_gradients(grads, row), 3) for row in rows.tolist()
    ]
    assert np.isnan(expected).any()
    actual = autocorrelation(history)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def ar1(phi: float, steps: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((steps, V, D))
    grads = noise.copy()
    for t in range(1, steps):
        grads[t] = phi * grads[t - 1] + np.sqrt(1 - phi**2) * noise[t]
    return grads


def test_autocorrelation_of_an_ar1_process() -> None:
    touched = ar1(0.6, 500)
    # Rows wait while they are not touched: lags count touches.
    grads = np.zeros((2 * len(touched), V, D), np.float32)
    grads[::2] = touched
    history = history_of(grads)
    expected = [0.6, 0.36, 0.216]
    measured = autocorrelation(history).mean(axis=0)
    np.testing.assert_allclose(measured, expected, atol=0.01)
    assert abs(autocorrelation_null(history).mean()) < 0.01


def test_null_of_the_autocorrelation_is_a_random_order() -> None:
    rng = np.random.default_rng(2)
    grads = np.float32(ar1(0.9, 12) + rng.standard_normal((V, D)))
    actual = autocorrelation_null(history_of(grads))
    # All orders at once: the mean over all pairs.
    gram = np.einsum("tvd,svd->vts", *[np.float64(grads)] * 2)
    squares = np.trace(gram, axis1=1, axis2=2)
    expected = (gram.sum(axis=(1, 2)) - squares) / (11 * squares)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    shuffled = [
        autocorrelation_of(rng.permutation(np.float64(grads[:, 3])), 1)
        for _ in range(2000)
    ]
    assert np.mean(shuffled) == pytest.approx(float(actual[3]), abs=0.02)


def test_drift_is_not_memory() -> None:
    rng = np.random.default_rng(3)
    drift = rng.standard_normal((V, D))
    grads = np.float32(drift + rng.standard_normal((200, V, D)))
    history = history_of(grads)
    measured = autocorrelation(history).mean(axis=0)
    null = autocorrelation_null(history).mean()
    assert null > 0.4
    np.testing.assert_allclose(measured, null, atol=0.01)


def test_rows_without_a_pair_have_no_autocorrelation() -> None:
    grads = np.zeros((5, V, D), np.float32)
    grads[2, 1] = 1
    history = history_of(grads)
    assert history.touches[1] == 1
    assert np.isnan(autocorrelation(history)).all()
    assert np.isnan(autocorrelation_null(history)).all()
