"""How far a second moment is from row x col, against NumPy and where it is known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ember_optax
from benchmarks.geometry import instrument as geometry
from tests.benchmarks.geometry.made_up import (
    B2,
    EVERY_ROW,
    KEY,
    D,
    V,
    fold,
    sparse_gradients,
)

# Read as users may read them, compiled.
factorization_error = jax.jit(geometry.factorization_error, static_argnames="quantiles")
factored_null = jax.jit(geometry.factored_null)


def moment_of(grads: Any, rows: Any = EVERY_ROW, b2: float = B2) -> Any:
    init = geometry.second_moment_init(grads[0], rows)
    update = functools.partial(geometry.second_moment_update, b2=b2)
    return fold(update, init, grads)


def dense_moment(grads: np.ndarray, b2: float = B2) -> np.ndarray:
    weights = (1 - b2) * b2 ** np.arange(len(grads))[::-1]
    return np.tensordot(
        weights, np.float64(grads).reshape(*grads.shape[:2], -1) ** 2, 1
    )


@pytest.mark.parametrize("shape", [(V, D), (V, 2, D // 2)])
def test_second_moment_of_a_sample(shape: Any) -> None:
    grads = sparse_gradients(60, shape)
    rows = jnp.array([3, 5, V - 1])
    moment = moment_of(grads, rows)
    dense = dense_moment(grads)
    np.testing.assert_allclose(moment.dense, dense[rows], rtol=1e-5)
    np.testing.assert_allclose(moment.col, dense.mean(axis=0), rtol=1e-5)


def test_columns_are_those_of_ember() -> None:
    grads = sparse_gradients(30)
    tx = ember_optax.scale_by_ember(vocab_axis=0)
    update = lambda state, grad: tx.update(grad, state)[1]  # noqa: E731
    state = fold(update, tx.init(jnp.zeros((V, D))), grads)
    (moments,) = state.tables.values()
    moment = moment_of(grads)
    np.testing.assert_allclose(moment.col, moments.col, rtol=1e-5)
    np.testing.assert_allclose(moment.dense.mean(axis=1), moments.row, rtol=1e-5)


def test_error_of_a_factorisation() -> None:
    dense = dense_moment(sparse_gradients(60))
    dense[0] = 0
    row, col = dense.mean(axis=1), dense.mean(axis=0)
    factored = np.outer(row, col) / col.mean()
    seen = dense > 0
    quantiles = (0.1, 0.5, 0.9)
    expected = np.quantile(np.log(factored[seen] / dense[seen]), quantiles)
    divergence = np.sum(dense[seen] * np.log(dense[seen] / factored[seen]))
    divergence = (divergence - dense.sum() + factored.sum()) / dense.sum()

    error = factorization_error(
        jnp.float32(dense), jnp.float32(col), quantiles=quantiles
    )
    np.testing.assert_allclose(error.log_ratio, expected, rtol=1e-4)
    np.testing.assert_allclose(error.divergence, divergence, rtol=1e-4)


def test_an_exact_factorisation_has_no_error() -> None:
    rng = np.random.default_rng(4)
    row, col = np.exp(3 * rng.standard_normal(V)), np.exp(rng.standard_normal(D))
    for size in (1.0, 1e-16):
        dense = jnp.float32(size * np.outer(row, col))
        error = factorization_error(dense, dense.mean(axis=0))
        np.testing.assert_allclose(error.log_ratio, 0, atol=5e-6)
        np.testing.assert_allclose(error.divergence, 0, atol=1e-6)


def test_no_other_product_of_row_and_column_is_nearer() -> None:
    dense = jnp.float32(dense_moment(sparse_gradients(60)))
    col = dense.mean(axis=0)
    best = factorization_error(dense, col).divergence
    for seed in range(5):
        noise = jax.random.normal(jax.random.key(seed), col.shape)
        other = factorization_error(dense, col * jnp.exp(0.1 * noise))
        assert other.divergence > best


@pytest.mark.parametrize("touches", [3, 100])
def test_the_null_is_what_factored_gradients_leave(touches: int) -> None:
    rng = np.random.default_rng(5)
    row, col = np.exp(rng.standard_normal(1000)), np.exp(rng.standard_normal(D))
    noise = rng.standard_normal((touches, 1000, D))
    moment = moment_of(np.float32(np.outer(row, col) * noise), jnp.arange(1000))
    actual = factorization_error(moment.dense, moment.col)
    null = factored_null(KEY, moment)
    drawn = factorization_error(null, moment.col)
    np.testing.assert_allclose(actual.log_ratio, drawn.log_ratio, atol=0.12)
    np.testing.assert_allclose(actual.divergence, drawn.divergence, rtol=0.15)
    assert actual.log_ratio[-1] - actual.log_ratio[0] > 2 / np.sqrt(touches)


def test_touches_count_by_their_weights() -> None:
    b2, sizes = 0.9, np.array([1.0, 0.0, 3.0, 1.0])
    grads = np.float32(np.sqrt(sizes))[:, None, None] * np.ones((1, V, D), np.float32)
    moment = moment_of(grads, b2=b2)
    weights = (1 - b2) * b2 ** np.arange(4)[::-1] * sizes
    expected = np.sum(weights**2) / np.sum(weights) ** 2
    np.testing.assert_allclose(moment.repeats, expected, rtol=1e-5)


def test_shuffled_cells_are_the_same_cells() -> None:
    dense = jnp.arange(12.0).reshape(3, 4)
    shuffled = geometry.shuffled_null(KEY, dense)
    assert shuffled.shape == dense.shape
    assert not np.array_equal(shuffled, dense)
    assert sorted(shuffled.ravel().tolist()) == sorted(dense.ravel().tolist())
    assert (shuffled.sum(axis=1) != dense.sum(axis=1)).any()
