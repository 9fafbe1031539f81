"""Numbers at the edges of float32, and derivatives through the update."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ember_optax.experimental import fused

import ember_optax
from ember_optax import lazy

pytestmark = pytest.mark.usefixtures("standard_promotion")

V, D = 64, 8
GRADS = np.float32(np.random.default_rng(0).standard_normal((6, V, D)))
means = pytest.mark.parametrize("column_mean", ["all", "active"])


# One optimizer for the same settings, so that it is compiled once for all of them.
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


def assert_finite(tree: Any) -> None:
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


# Overflow


@means
@pytest.mark.parametrize("size", [2e19, -3e19, 1e30, 3.4e38])
def test_one_huge_element_does_not_reach_other_rows_and_columns(
    size: float, column_mean: str
) -> None:
    grads = np.copy(GRADS)
    grads[2, 3, 1] = size
    tx = scale_by_ember(column_mean=column_mean)
    updates, state = train(tx, grads)
    expected, expected_state = train(tx, GRADS)
    assert_finite((updates, state))
    elsewhere = np.ix_([i for i in range(V) if i != 3], [j for j in range(D) if j != 1])
    for update, other in zip(updates, expected, strict=True):
        np.testing.assert_allclose(update[elsewhere], other[elsewhere], rtol=0.1)
    moments, other = state.tables[""], expected_state.tables[""]
    # A row that takes no part is not active.
    close = functools.partial(np.testing.assert_allclose, rtol=1 / V)
    close(np.delete(moments.row, 3), np.delete(other.row, 3))
    close(np.delete(moments.col, 1), np.delete(other.col, 1))
    assert np.abs(updates).max() < 1 / np.sqrt(0.001)


@means
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_table_of_huge_gradients_recovers(dtype: str, column_mean: str) -> None:
    grads = np.copy(GRADS)
    grads[2] *= 1e38
    tx = scale_by_ember(column_mean=column_mean)
    updates, state = train(tx, grads.astype(dtype))
    assert_finite((np.float32(updates), state))
    expected, _ = train(tx, GRADS[[0, 1, 3, 4, 5]].astype(dtype))
    # The step counts for the bias correction, and decays what was there.
    np.testing.assert_allclose(
        np.float32(updates[5]), np.float32(expected[4]), rtol=0.15
    )


def test_sums_that_overflow_where_no_square_does() -> None:
    grads = np.copy(GRADS)
    grads[1, 3], grads[2, :, 1] = 1.8e19, 1.8e19
    updates, state = train(scale_by_ember(), grads)
    assert_finite((updates, state))


def test_a_huge_element_that_meets_rows_of_zeros() -> None:
    grads = np.zeros((3, V, D), np.float32)
    grads[0, 0, 0] = 3e38
    for eps in (0.0, 1e-8):
        assert_finite(train(scale_by_ember(eps=eps), grads))


def test_apply_if_finite_has_nothing_to_reject() -> None:
    grads = np.copy(GRADS)
    grads[2, 3, 1] = 3e19
    updates, state = train(
        optax.apply_if_finite(ember_optax.scale_by_ember(), 5), grads
    )
    assert state.total_notfinite == 0
    assert_finite((updates, state))


@pytest.mark.parametrize("axis", [0, 1])
def test_sharded_tables_overflow_as_whole_ones_do(axis: int) -> None:
    mesh = jax.make_mesh((4,), ("x",))
    spec = [None, None]
    spec[axis] = "x"
    grads = np.copy(GRADS)
    grads[2, 3, 1], grads[3, 7] = 3e19, 1.8e19
    tx = scale_by_ember()
    expected, _ = train(tx, grads)
    with jax.set_mesh(mesh):
        put = functools.partial(jax.device_put, device=jax.P(*spec))
        state, update_fn = tx.init(put(jnp.zeros((V, D)))), jax.jit(tx.update)
        for grad, other in zip(grads, expected, strict=True):
            update, state = update_fn(put(grad), state)
            np.testing.assert_allclose(update, other, rtol=1e-5)


def test_lazy_rows_overflow_as_dense_ones_do() -> None:
    grads = np.copy(GRADS)
    grads[2, 3, 1], grads[3, 7] = 3e19, 1.8e19
    updates, dense = train(scale_by_ember(), grads)
    table = jnp.zeros((V, D))
    state, step = (
        lazy.init(table),
        jax.jit(functools.partial(lazy.apply, learning_rate=1.0)),
    )
    for grad, update in zip(grads, updates, strict=True):
        before = table
        table, state = step(table, state, jnp.arange(V), jnp.asarray(grad))
        np.testing.assert_allclose(before - table, update, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state.row, dense.tables[""].row, rtol=1e-5)
    np.testing.assert_allclose(state.col, dense.tables[""].col, rtol=1e-5)


def test_a_fused_step_stays_finite() -> None:
    grads = np.copy(GRADS)
    grads[2, 3, 1], grads[3, 7] = 3e19, 1.8e19
    table = jnp.zeros((V, D))
    state, step = (
        fused.init(table),
        jax.jit(functools.partial(fused.apply, learning_rate=1e-2)),
    )
    for grad in grads:
        table, state = step(table, state, jnp.asarray(grad))
    assert_finite((table, state))
    assert np.abs(table).max() < 6 * 1e-2 / np.sqrt(0.001)


def test_moments_of_adam_that_would_overflow() -> None:
    tx, params = ember_optax.ember(1e-2), {"embed": jnp.zeros((V, D))}
    state = tx.init(params)
    row = state[0].tables["embed"].row.at[3].set(1e38)
    moments = ember_optax.TableMoments(row, jnp.full(D, float(row.mean())))
    _, state = tx.update({"embed": jnp.ones((V, D))}, state, params)
    state = (state[0]._replace(tables={"embed": moments}), *state[1:])
    assert_finite(ember_optax.to_adam(state, optax.adam(1e-2), params))
    assert_finite(
        ember_optax.resize_vocab(state, params, {"embed": jnp.zeros((V + 3, D))})
    )


# Underflow


@means
@pytest.mark.parametrize("eps", [0.0, 1e-30])
@pytest.mark.parametrize("b2", [0.9, 0.999, 0.99999])
def test_tiny_gradients_take_no_huge_steps(
    b2: float, eps: float, column_mean: str
) -> None:
    tx = scale_by_ember(b2, eps, column_mean=column_mean)
    ordinary, _ = train(tx, GRADS)
    for size in (5e-17, 1e-18, 1e-19, 1e-20, 1e-30):
        updates, state = train(tx, size * GRADS)
        assert_finite((updates, state))
        assert np.abs(updates).max() <= 1.1 * np.abs(ordinary).max()


@pytest.mark.parametrize("size", [1e-20, 1e-25, 1e-30])
def test_gradients_without_a_statistic_are_divided_by_eps(size: float) -> None:
    updates, _ = train(scale_by_ember(), size * GRADS)
    np.testing.assert_allclose(updates, size * GRADS / 1e-8, rtol=1e-5)


# Derivatives


def loss_after_two_steps(
    learning_rate: jax.Array,
    scale: jax.Array,
    make: Callable[..., optax.GradientTransformation],
) -> jax.Array:
    """Only three rows of the table have a gradient."""
    ids = jnp.array([1, 2, 5])
    table, tx = jnp.asarray(GRADS[0]), make(learning_rate)
    state = tx.init(table)
    for _ in range(2):
        grad = jax.grad(lambda table: jnp.mean(table[ids] ** 4))(table)
        updates, state = tx.update(scale * grad, state, table)
        table = optax.apply_updates(table, updates)
    return jnp.mean(table[ids] ** 2)


@means
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_derivatives_by_the_learning_rate_and_the_scale(
    eps: float, column_mean: str
) -> None:
    make = functools.partial(ember_optax.ember, eps=eps, column_mean=column_mean)
    loss = functools.partial(loss_after_two_steps, make=make)
    by_rate, by_scale = jax.grad(loss, (0, 1))(0.1, 1.0)
    step = 1e-2
    expected = (loss(0.1 + step, 1.0) - loss(0.1 - step, 1.0)) / (2 * step)
    np.testing.assert_allclose(by_rate, expected, rtol=1e-2)
    expected = (loss(0.1, 1 + step) - loss(0.1, 1 - step)) / (2 * step)
    np.testing.assert_allclose(by_scale, expected, rtol=1e-2, atol=1e-4)


def test_derivatives_where_no_row_has_a_gradient() -> None:
    def loss(scale: jax.Array, eps: float) -> jax.Array:
        tx = ember_optax.scale_by_ember(eps=eps)
        updates, _ = tx.update(scale * jnp.zeros((V, D)), tx.init(jnp.zeros((V, D))))
        return jnp.sum(updates)

    for eps in (0.0, 1e-8):
        assert np.isfinite(jax.grad(loss)(1.0, eps))
