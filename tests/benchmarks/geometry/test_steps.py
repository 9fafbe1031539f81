"""Sizes of steps, against NumPy in float64 and where they are known."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from benchmarks.geometry import instrument as geometry
from tests.benchmarks.geometry.made_up import B2, D, V, fold, sparse_gradients


def test_sizes_of_steps() -> None:
    grads = sparse_gradients(20)
    grads[:, 1] = 0  # never touched
    updates = np.float32(np.random.default_rng(6).standard_normal(grads.shape))
    steps = geometry.steps_init(jnp.zeros((V, D)))
    steps = fold(geometry.steps_update, steps, updates, grads)
    size = np.sqrt(np.mean(np.float64(updates) ** 2, axis=2))
    touched = np.any(grads != 0, axis=2)
    assert (steps.touches == touched.sum(axis=0)).all()
    with np.errstate(invalid="ignore", divide="ignore"):
        at_touch = (size * touched).sum(axis=0) / touched.sum(axis=0)
        path = size.sum(axis=0) / touched.sum(axis=0)
    mean = geometry.mean_steps(steps)
    np.testing.assert_allclose(mean.touched, at_touch, rtol=1e-5)
    assert np.isnan(at_touch).any()
    seen = touched.any(axis=0)
    np.testing.assert_allclose(mean.per_touch[seen], path[seen], rtol=1e-5)
    assert np.isnan(mean.per_touch[~seen]).all()
    np.testing.assert_allclose(steps.largest, size.max(axis=0), rtol=1e-5)


OPTIMIZERS = {
    "ember": (ember_optax.scale_by_ember(B2, vocab_axis=0), 0.0),
    "adam": (optax.scale_by_adam(0.9, B2), 0.9),
    "adam without a first moment": (optax.scale_by_adam(0.0, B2), 0.0),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def steps_of(tx: Any, grads: Any) -> Any:
    def update(carry: Any, grad: Any) -> Any:
        steps, state = carry
        updates, state = tx.update(grad, state)
        return geometry.steps_update(steps, updates, grad), state

    table = jnp.zeros(grads[0].shape)
    return fold(update, (geometry.steps_init(table), tx.init(table)), grads)[0]


@every_optimizer
@pytest.mark.usefixtures("standard_promotion")
def test_a_cold_row_takes_the_longest_step(name: str) -> None:
    tx, b1 = OPTIMIZERS[name]
    signs = np.random.default_rng(7).choice([-1.0, 1.0], (6000, V, 1))
    grads = np.float32(signs) * np.ones((1, 1, 4), np.float32)
    grads[:5900, 0] = grads[5901:, 0] = 0  # touched once, when bias is long gone
    steps = steps_of(tx, grads)
    longest = 1 / np.sqrt(1 - B2)
    assert steps.largest[0] == pytest.approx((1 - b1) * longest, rel=3e-3)
    assert steps.largest.max() <= geometry.step_bound(B2, b1) * (1 + 1e-5)
    # With a first moment the rest comes later.
    assert geometry.mean_steps(steps).per_touch[0] == pytest.approx(longest, rel=0.01)


def test_bound_of_a_step() -> None:
    assert geometry.step_bound(0.99) == pytest.approx(10)
    assert geometry.step_bound(0.999) == pytest.approx(1000**0.5, rel=1e-6)
    # Gradients that grow as fast as Cauchy and Schwarz allow.
    b1, b2 = 0.9, 0.99
    grads = (b2 / b1) ** np.arange(400.0)
    ages = np.arange(400)[::-1]
    m = (1 - b1) * np.sum(b1**ages * grads)
    v = (1 - b2) * np.sum(b2**ages * grads**2)
    assert geometry.step_bound(b2, b1) == pytest.approx(m / np.sqrt(v), rel=1e-3)


@pytest.mark.parametrize("period", [1, 10, 500])
def test_expected_step_of_a_row(period: int) -> None:
    # Touched by chance before the last step, of which it takes the mean of the moment.
    touches = np.random.default_rng(8).random((2000, 3000)) < 1 / period
    touches[-1] = True
    row = (1 - B2) * (B2 ** np.arange(2000)[::-1] @ touches)
    step = np.sqrt((1 - B2**2000) / np.mean(row))
    expected = geometry.expected_step(jnp.array(1 / period), jnp.array(2000), B2)
    assert expected == pytest.approx(step, rel=0.01)
    first = geometry.expected_step(jnp.array([0.0, 1.0]), jnp.array([1, 1]), B2)
    np.testing.assert_allclose(first, 1, rtol=1e-6)
