"""Lazy rows against the dense rule: rows that wait for their step lose nothing."""

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

V, D, N = 500, 8, 48
STEPS = 1000
LEARNING_RATE = 1e-2


def schedule(count: Any) -> jax.Array:
    """A learning rate that changes at every step."""
    return LEARNING_RATE * (1 + jnp.sin(jnp.asarray(count, jnp.float32) / 100)) / 2


@functools.cache
def jitted(**options: Any) -> Any:
    return jax.jit(functools.partial(lazy.update, **options))


def zipf(
    steps: int, shape: tuple[int, ...] = (D,), seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and gradients of batches: common rows repeat, rare ones wait, some are -1."""
    rng = np.random.default_rng(seed)
    probability = 1 / np.arange(1, V + 1)
    ids = rng.choice(V, (steps, N), p=probability / probability.sum())
    ids[rng.random((steps, N)) < 0.1] = -1
    grads = rng.standard_normal((steps, N, *shape)) * np.exp(rng.standard_normal(shape))
    return ids.astype(np.int32), grads.astype(np.float32)


def table_of(shape: tuple[int, ...] = (D,), seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((V, *shape), np.float32)


@functools.partial(jax.jit, static_argnames=("weight_decay", "learning_rate"))
def run_lazy(
    table: Any,
    ids: Any,
    grads: Any,
    weight_decay: float = 0.0,
    learning_rate: Any = LEARNING_RATE,
) -> Any:
    def step(carry: Any, batch: Any) -> Any:
        options = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        return lazy.update(*carry, *batch, **options), None

    init = table, lazy.init(table, weight_decay=weight_decay > 0)
    (table, state), _ = jax.lax.scan(step, init, (ids, grads))
    ids = jnp.arange(V).reshape(20, -1)  # of any shape
    return lazy.lookup(table, state, ids).reshape(table.shape), state


@functools.partial(jax.jit, static_argnames=("weight_decay", "learning_rate"))
def run_dense(
    table: Any,
    ids: Any,
    grads: Any,
    weight_decay: float = 0.0,
    learning_rate: Any = LEARNING_RATE,
) -> Any:
    tx = ember_optax.ember(learning_rate, weight_decay=weight_decay, vocab_axis=0)

    def step(carry: Any, batch: Any) -> Any:
        table, state = carry
        updates, state = tx.update(dense(*batch, table), state, table)
        return (optax.apply_updates(table, updates), state), None

    (table, state), _ = jax.lax.scan(step, (table, tx.init(table)), (ids, grads))
    return table, optax.tree.get(state, "tables")[""]


def dense(ids: Any, grads: Any, table: Any) -> jax.Array:
    """The gradient of the table whose rows `ids` have the gradients `grads`."""
    ids = jnp.where(ids < 0, V, ids)
    zeros = jnp.zeros(table.shape, table.dtype)
    return zeros.at[ids].add(grads.astype(table.dtype), mode="drop")


def run_float64(run: Any, table: Any, ids: Any, grads: Any, **options: Any) -> Any:
    with jax.enable_x64(True):
        args = np.float64(table), ids, np.float64(grads)
        return jax.device_get(run(*args, **options))


def row_now(state: lazy.LazyState, b2: float = 0.999) -> np.ndarray:
    """The row statistic that the dense rule has at this step."""
    missed = np.float64(state.count) - np.asarray(state.last_step)
    return np.float64(state.row) * b2**missed


def error_of_rows(actual: Any, expected: Any) -> float:
    """The largest error of a row, in units of its length."""
    actual, expected = (np.float64(x).reshape(V, -1) for x in (actual, expected))
    error = np.linalg.norm(actual - expected, axis=1)
    return np.max(error / np.linalg.norm(expected, axis=1))


every_decay = pytest.mark.parametrize("weight_decay", [0.0, 0.1])


@every_decay
def test_float32_is_close_to_the_exact_rule(weight_decay: float) -> None:
    # Each of 1,000 roundings of a parameter is up to 6e-8, at random: 6e-8 sqrt(1000).
    options = {"weight_decay": weight_decay, "learning_rate": schedule}
    args = table_of(), *zipf(STEPS)
    exact, moments = run_float64(run_dense, *args, **options)
    actual, state = run_lazy(*args, **options)
    assert error_of_rows(actual, exact) <= 1.9e-6
    np.testing.assert_allclose(row_now(state), moments.row, rtol=2e-6)
    np.testing.assert_allclose(state.col, moments.col, rtol=2e-6)


@pytest.mark.parametrize(("shape", "weight_decay"), [((D,), 0.0), ((3, 4), 0.1)])
def test_equal_in_float64(shape: tuple[int, ...], weight_decay: float) -> None:
    options = {"weight_decay": weight_decay, "learning_rate": schedule}
    args = table_of(shape), *zipf(300, shape)
    expected, moments = run_float64(run_dense, *args, **options)
    actual, state = run_float64(run_lazy, *args, **options)
    chex.assert_type([actual, state.row, state.col], np.float64)
    assert error_of_rows(actual, expected) <= 1e-12
    np.testing.assert_allclose(row_now(state), moments.row, rtol=1e-11)


def test_bfloat16_rounds_rows_once() -> None:
    ids, grads = zipf(1)
    table, grads = jnp.bfloat16(table_of()), jnp.bfloat16(grads)
    exact, _ = run_lazy(table.astype("float32"), ids, grads.astype("float32"))
    actual, state = run_lazy(table, ids, grads)
    chex.assert_type([actual, state.row, state.col], [jnp.bfloat16] + [np.float32] * 2)
    np.testing.assert_array_equal(actual, exact.astype(jnp.bfloat16))


def test_rows_outside_the_batch_are_bitwise_identical() -> None:
    table, (ids, grads) = table_of(), zipf(1)
    after, _ = run_lazy(table, ids, grads)
    rest = np.setdiff1d(np.arange(V), ids)
    np.testing.assert_array_equal(after[rest], table[rest])
    assert np.all(after[np.setdiff1d(ids, -1)] != table[np.setdiff1d(ids, -1)])


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint32"])
def test_ids_outside_the_table_are_padding(dtype: str) -> None:
    with jax.enable_x64(dtype == "int64"):
        limits = np.iinfo(dtype)
        outside = np.array([V, limits.max, limits.min or V], dtype)
        ids = np.append(outside, np.array([3, 3], dtype))
        table = jnp.float32(table_of())
        grads = jnp.ones((5, D)).at[:3].set(jnp.nan)
        state = lazy.init(table)
        after, state = jitted(learning_rate=1.0)(table, state, ids, grads)
        np.testing.assert_allclose(after[3], table[3] - 1, rtol=1e-6)
        np.testing.assert_array_equal(np.delete(after, 3, 0), np.delete(table, 3, 0))
        np.testing.assert_array_equal(np.flatnonzero(state.last_step), [3])
        assert not np.any(lazy.lookup(table, state, jnp.asarray(outside)))


def test_microbatches_give_the_union_of_their_rows() -> None:
    table, (ids, grads) = table_of(), zipf(4)
    one = ids.ravel(), grads.reshape(-1, D)
    expected, state = run_lazy(table, *(x[None] for x in one))
    actual, of_four = run_lazy(table, ids[None], grads[None])
    chex.assert_trees_all_equal((actual, of_four), (expected, state))
    exact, moments = run_dense(table, *(x[None] for x in one))
    assert error_of_rows(actual, exact) <= 1e-6
    np.testing.assert_allclose(state.row, moments.row, rtol=1e-6)


@pytest.mark.parametrize("b2", [0.999, 0.9999999, 0.5, 0.0])
def test_a_row_catches_up_with_any_gap(b2: float) -> None:
    table, grads = jnp.zeros((4, 2)), jnp.zeros((1, 2))
    for gap in (1, 2, 100, 700, 30_000, 85_000, 10**9, 2**31 - 2):
        state = lazy.init(table)._replace(
            row=jnp.full(4, 1e4), last_step=jnp.full(4, 1), count=jnp.int32(gap)
        )
        _, state = jitted(learning_rate=1, b2=b2)(table, state, jnp.array([2]), grads)
        # The rule has 1 - b2 in float32, which float32(b2) cannot express.
        log = gap * np.log1p(-np.float64(np.float32(1 - b2))) if b2 else -np.inf
        # An exponent is rounded in its last bit, 6e-8 of it.
        bound = 2e-7 * max(1, min(-log, 100))
        expected = 1e4 * np.exp(log)
        np.testing.assert_allclose(state.row[2], expected, rtol=bound, atol=2e-38)


def test_nan_gradient_does_not_stop_the_bookkeeping_of_its_row() -> None:
    options = {"learning_rate": 0.1, "weight_decay": 0.5}
    table = jnp.ones((4, 2))
    state = lazy.init(table, weight_decay=True)
    ids, grads = jnp.array([1, 2]), jnp.array([[1.0, 1.0], [jnp.nan, 1.0]])
    for _ in range(2):
        table, state = jitted(**options)(table, state, ids, grads)
    np.testing.assert_array_equal(state.last_step, [0, 2, 2, 0])
    np.testing.assert_allclose(state.decay.total, 2 * np.log1p(-0.05), rtol=1e-6)
    np.testing.assert_array_equal(state.decay.row[1:3], state.decay.total)
    kept = lazy.lookup(table, state, jnp.array([0, 3]))
    np.testing.assert_allclose(kept, 0.95**2, rtol=1e-6)


def test_counters_do_not_overflow() -> None:
    last = 2**31 - 1
    table, ids, grads = jnp.ones((4, 2)), jnp.array([2]), jnp.ones((1, 2))
    state = lazy.init(table)._replace(count=jnp.int32(last))
    for _ in range(2):
        before = state.row[2]
        table, state = jitted(learning_rate=0.1)(table, state, ids, grads)
        assert state.count == state.last_step[2] == last
        expected = 0.999 * np.float64(before) + 0.001
        np.testing.assert_allclose(state.row[2], expected, rtol=1e-5)


def test_small_decays_add_up_to_a_large_total() -> None:
    # 1e-7 is below the last bit of a float32 of 20.
    table = jnp.ones((4, 2))
    state = lazy.init(table, weight_decay=True)
    decay = state.decay._replace(total=jnp.float32(-20), row=jnp.full(4, -20.0))

    @jax.jit
    def many(state: lazy.LazyState) -> lazy.LazyState:
        def step(_: Any, state: lazy.LazyState) -> lazy.LazyState:
            options = {"learning_rate": 1e-3, "weight_decay": 1e-4}
            grads = jnp.zeros((1, 2))
            return lazy.update(table, state, jnp.array([3]), grads, **options)[1]

        return jax.lax.fori_loop(0, 10_000, step, state)

    state = many(state._replace(decay=decay))
    kept = lazy.lookup(table, state, jnp.array([0]))
    np.testing.assert_allclose(kept, np.full((1, 2), np.exp(-1e-3)), rtol=1e-6)
