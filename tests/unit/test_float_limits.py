"""Gradients close to the limits of float32, and derivatives through the update."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from ember_optax import lazy

pytestmark = pytest.mark.usefixtures("standard_promotion")

V, D = 64, 8
GRADS = np.float32(np.random.default_rng(0).standard_normal((6, V, D)))
DAMAGED = np.copy(GRADS)  # one huge element, and a row whose sum of squares overflows
DAMAGED[2, 3, 1], DAMAGED[3, 7] = 3e19, 1.8e19

scale_by_ember = functools.cache(ember_optax.scale_by_ember)


def train(tx: Any, grads: Any) -> tuple[np.ndarray, Any]:
    """Returns all updates and the last state."""
    return jax.device_get(_train(tx, jnp.asarray(grads)))


@functools.partial(jax.jit, static_argnums=0)
def _train(tx: Any, grads: jax.Array) -> Any:
    def step(state: Any, grad: jax.Array) -> Any:
        update, state = tx.update(grad, state)
        return state, update

    state, updates = jax.lax.scan(step, tx.init(grads[0]), grads)
    return updates, state


@pytest.mark.parametrize("size", [2e19, -3e19, 3.4e38])
def test_one_huge_element_does_not_reach_other_rows_and_columns(size: float) -> None:
    grads = np.copy(GRADS)
    grads[2, 3, 1] = size
    updates, state = train(scale_by_ember(), grads)
    expected, expected_state = train(scale_by_ember(), GRADS)
    chex.assert_tree_all_finite((updates, state))
    # Its own row and column take no part in this step.
    assert not updates[2, 3].any()
    assert not updates[2, :, 1].any()
    elsewhere = np.ix_(range(6), np.delete(np.arange(V), 3), np.delete(np.arange(D), 1))
    np.testing.assert_allclose(updates[elsewhere], expected[elsewhere], rtol=0.1)
    (row, col), other = state.tables[""], expected_state.tables[""]
    np.testing.assert_allclose(np.delete(row, 3), np.delete(other.row, 3), rtol=1e-6)
    np.testing.assert_allclose(np.delete(col, 1), np.delete(other.col, 1), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_table_of_huge_gradients_recovers(dtype: str) -> None:
    grads = np.copy(GRADS)
    grads[2] *= 1e38
    updates, state = train(scale_by_ember(), grads.astype(dtype))
    chex.assert_tree_all_finite((np.float32(updates), state))
    expected, _ = train(scale_by_ember(), GRADS[[0, 1, 3, 4, 5]].astype(dtype))
    # The step counts for the bias correction and decays the statistics.
    after, expected = np.float32(updates[5]), np.float32(expected[4])
    np.testing.assert_allclose(after, expected, rtol=0.15)


def test_huge_element_in_a_table_of_zeros() -> None:
    grads = np.zeros((3, V, D), np.float32)
    grads[0, 0, 0] = 3e38
    chex.assert_tree_all_finite(train(scale_by_ember(), grads))


@pytest.mark.parametrize("shape", [(V, 1), (1, 1), (V, D)])
def test_table_of_zeros_has_updates_of_zero(shape: tuple[int, int]) -> None:
    updates, _ = train(scale_by_ember(), np.zeros((3, *shape), np.float32))
    np.testing.assert_array_equal(updates, 0)


def test_apply_if_finite_accepts_huge_gradients() -> None:
    tx = optax.apply_if_finite(ember_optax.scale_by_ember(), 5)
    updates, state = train(tx, DAMAGED)
    assert state.total_notfinite == 0
    chex.assert_tree_all_finite((updates, state))


@pytest.mark.parametrize("axis", [0, 1])
def test_sharded_tables_overflow_as_whole_ones_do(axis: int) -> None:
    spec = [None, None]
    spec[axis] = "x"
    expected, _ = train(scale_by_ember(), DAMAGED)
    tx = scale_by_ember()
    with jax.set_mesh(jax.make_mesh((4,), ("x",))):
        put = functools.partial(jax.device_put, device=jax.P(*spec))
        state, update_fn = tx.init(put(jnp.zeros((V, D)))), jax.jit(tx.update)
        for grad, other in zip(DAMAGED, expected, strict=True):
            update, state = update_fn(put(grad), state)
            np.testing.assert_allclose(update, other, rtol=1e-5)


def test_lazy_rows_overflow_as_dense_ones_do() -> None:
    updates, dense = train(scale_by_ember(), DAMAGED)
    table, step = jnp.zeros((V, D)), jax.jit(functools.partial(lazy.update, **RATE))
    state = lazy.init(table)
    for grad, update in zip(DAMAGED, updates, strict=True):
        before = table
        table, state = step(table, state, jnp.arange(V), jnp.asarray(grad))
        np.testing.assert_allclose(before - table, update, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state.row, dense.tables[""].row, rtol=1e-5)
    np.testing.assert_allclose(state.col, dense.tables[""].col, rtol=1e-5)


RATE = {"learning_rate": 1.0}


@pytest.mark.parametrize("b2", [0.9, 0.999, 0.99999])
def test_tiny_gradients_give_finite_small_updates(b2: float) -> None:
    largest = np.abs(train(scale_by_ember(b2), GRADS)[0]).max()
    for size in (5e-17, 1e-18, 1e-20, 1e-30):
        updates, state = train(scale_by_ember(b2), size * GRADS)
        chex.assert_tree_all_finite((updates, state))
        assert np.abs(updates).max() <= 1.1 * largest


@pytest.mark.parametrize("size", [1e-20, 1e-30])
def test_gradients_without_a_statistic_are_divided_by_eps(size: float) -> None:
    updates, _ = train(scale_by_ember(), size * GRADS)
    np.testing.assert_allclose(updates, size * GRADS / 1e-8, rtol=1e-5)


def loss_after_two_steps(rate: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Only three rows of the table have a gradient."""
    ids = jnp.array([1, 2, 5])
    table, tx = jnp.asarray(GRADS[0]), ember_optax.ember(rate, eps=eps)
    state = tx.init(table)
    for _ in range(2):
        grad = jax.grad(lambda table: jnp.mean(table[ids] ** 4))(table)
        updates, state = tx.update(scale * grad, state, table)
        table = optax.apply_updates(table, updates)
    return jnp.mean(table[ids] ** 2)


@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_derivatives_through_two_steps(eps: float) -> None:
    loss = jax.jit(functools.partial(loss_after_two_steps, eps=eps))
    by_rate, by_scale = jax.grad(loss, (0, 1))(0.1, 1.0)
    step = 1e-2
    expected = (loss(0.1 + step, 1.0) - loss(0.1 - step, 1.0)) / (2 * step)
    np.testing.assert_allclose(by_rate, expected, rtol=1e-2)
    expected = (loss(0.1, 1 + step) - loss(0.1, 1 - step)) / (2 * step)
    np.testing.assert_allclose(by_scale, expected, rtol=1e-2, atol=1e-4)


def test_derivatives_where_no_row_has_a_gradient() -> None:
    def loss(scale: jax.Array) -> jax.Array:
        tx = ember_optax.scale_by_ember()
        updates, _ = tx.update(scale * jnp.zeros((V, D)), tx.init(jnp.zeros((V, D))))
        return jnp.sum(updates)

    assert np.isfinite(jax.jit(jax.grad(loss))(1.0))
