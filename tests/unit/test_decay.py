"""b2 as a schedule: long runs, its cap, injected values, and changes of b2."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import adafactor_decay, scale_by_ember
from tests.oracle import Oracle
from tests.unit.test_oracle import gradients, moments, normal, run

BOUND = 5e-6  # largest relative error of an update
SHAPE = (12, 5)
THETA, GRADS = normal(SHAPE), gradients(SHAPE, 60, sparse=True)


def exact_decay(count: float, max_decay: float = 0.999) -> float:
    return min(1 - (np.float64(count) + 1) ** -0.8, max_decay)


def assert_follows(oracle: Oracle, updates: Any, grads: Any) -> None:
    for grad, update in zip(grads, updates, strict=True):
        oracle.step(grad)
        np.testing.assert_allclose(update, oracle.update, rtol=BOUND)


@pytest.mark.parametrize("max_decay", [0.999, None])
def test_long_run(max_decay: float | None) -> None:
    """Tokens in every step, in few, in none, and one with a gap of 10,000 steps."""
    steps, rng = 20_000, np.random.default_rng(0)
    grads = np.exp(rng.normal(size=(7, 1))) * rng.normal(size=(steps, 7, 3))
    seen = rng.random((steps, 7)) < [1, 1, 0.3, 0.01, 0.001, 0, 0]
    seen[[0, 9_999, steps - 1], 5] = True
    grads = np.float32(grads * seen[..., None])
    oracle = Oracle(np.zeros((7, 3)), b2=lambda t: exact_decay(t, max_decay or 1.0))
    tx = scale_by_ember(adafactor_decay(max_decay=max_decay))
    _, updates, states = run(tx, np.zeros((7, 3), np.float32), grads)
    row, col = moments(states)
    for t, (grad, update) in enumerate(zip(grads, updates, strict=True)):
        oracle.step(grad)
        if t % 100 == 99:
            np.testing.assert_allclose(update, oracle.update, rtol=1e-4)
            np.testing.assert_allclose(row[t], oracle.row, rtol=3e-5)
            np.testing.assert_allclose(col[t], oracle.col, rtol=3e-5)


def test_statistics_of_a_constant_gradient_drift_little() -> None:
    # Every step rounds in the same direction. The average stops moving once
    # (1 - b2) (mean - row) is less than half a unit in the last place of row, which is
    # at most 2^-24 of row.
    bound = 2**-24 / 0.001
    grads = np.full((20_000, 4, 2), 0.7, np.float32)
    row, col = moments(run(scale_by_ember(), grads[0], grads)[2])
    mean_square = np.float64(grads[0, 0, 0]) ** 2 * (1 - 0.999**20_000)
    np.testing.assert_allclose(row[-1], mean_square, rtol=bound)
    np.testing.assert_allclose(col[-1], mean_square, rtol=bound)


@pytest.mark.parametrize("count", [0, 1, 100, 5622, 5623, 5624, 10**6, 2**31 - 1])
def test_complement_of_the_decay_is_exact_on_both_sides_of_the_cap(count: int) -> None:
    # From zero statistics, one step with a gradient of ones gives row = 1 - b2. The
    # default cap of 0.999 is reached after 5,623 steps.
    tx = scale_by_ember(adafactor_decay())
    ones = jnp.ones((4, 2))
    state = tx.init(ones)._replace(count=jnp.int32(count))
    _, state = tx.update(ones, state)
    expected = max((count + 1.0) ** -0.8, 0.001)
    np.testing.assert_allclose(state.tables[""].row, expected, rtol=1e-6)


def test_cap() -> None:
    counts = np.arange(20_000)
    for max_decay in (0.9, 0.999, None):
        found = jax.vmap(adafactor_decay(max_decay=max_decay))(counts)
        expected = np.minimum(1 - (counts + 1.0) ** -0.8, max_decay or 1.0)
        np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exponent": 0.0}, r"exponent must be in \(0, 1\], got 0.0"),
        ({"exponent": 1.5}, r"exponent must be in \(0, 1\], got 1.5"),
        ({"max_decay": 0.0}, r"max_decay must be in \(0, 1\), or None.*got 0.0"),
        ({"max_decay": 1.0}, r"max_decay must be in \(0, 1\), or None.*got 1.0"),
    ],
)
def test_invalid_decay_raises(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adafactor_decay(**options)


@pytest.mark.usefixtures("standard_promotion")  # the schedule divides by an integer
@pytest.mark.parametrize("injected", [False, True])
def test_schedule_that_reaches_1_keeps_moving_the_statistics(injected: bool) -> None:
    make = optax.inject_hyperparams(scale_by_ember) if injected else scale_by_ember
    tx = make(optax.linear_schedule(0.9, 1.0, 10))
    grads = jnp.concatenate([jnp.ones((20, 4, 2)), 1e3 * jnp.ones((20, 4, 2))])
    row, _ = moments(run(tx, np.zeros((4, 2), np.float32), grads)[2])
    # At the clamp of 1 - 1e-6, each of these squares of 1e6 adds about 1 to the mean.
    np.testing.assert_allclose(row[39] - row[19], 20, rtol=1e-2)


def test_schedule_below_0_is_clamped() -> None:
    tx = scale_by_ember(lambda count: 0.5 - jnp.float32(count))
    row, _ = moments(run(tx, THETA, GRADS)[2])
    np.testing.assert_allclose(row[2], np.mean(GRADS[2] ** 2, axis=1), rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_injected_schedule() -> None:
    b2 = adafactor_decay()
    _, updates, states = run(optax.inject_hyperparams(scale_by_ember)(b2), THETA, GRADS)
    decays = states.hyperparams["b2"]
    assert decays.dtype == jnp.float32
    np.testing.assert_allclose(decays, jax.vmap(b2)(jnp.arange(60)), atol=1e-7)
    assert_follows(Oracle(THETA, b2=lambda t: decays[t]), updates, GRADS)


def test_injected_value_that_changes() -> None:
    decays = np.float32([0.999, 0.9, 0.0, 0.95, 0.9999])
    tx = optax.inject_hyperparams(scale_by_ember)(0.5)
    chex.clear_trace_counter()
    update_fn = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state, updates = tx.init(THETA), []
    for decay, grad in zip(decays, GRADS, strict=False):
        state.hyperparams["b2"] = jnp.asarray(decay)
        update, state = update_fn(grad, state)
        updates.append(update)
    assert_follows(Oracle(THETA, b2=lambda t: decays[t]), updates, GRADS[:5])


def test_run_that_continues_with_another_b2() -> None:
    parts = [(0.999, 20), (adafactor_decay(), 20), (0.95, 20)]
    state, updates = scale_by_ember().init(THETA), []
    for b2, steps in parts:
        update_fn = jax.jit(scale_by_ember(b2).update)
        for grad in GRADS[len(updates) : len(updates) + steps]:
            update, state = update_fn(grad, state)
            updates.append(update)
    oracle = Oracle(THETA, b2=lambda t: [0.999, exact_decay(t), 0.95][t // 20])
    assert_follows(oracle, updates, GRADS)
    expected = 1 - oracle.remaining
    np.testing.assert_allclose(state.bias_correction, expected, rtol=BOUND)


@pytest.mark.parametrize(
    "value",
    [0, np.float64(0.9), jnp.int32(0)],
    ids=lambda x: f"{type(x).__name__} {x}",
)
def test_schedule_may_return_any_number(value: Any) -> None:
    _, updates, _ = run(scale_by_ember(lambda _: value), THETA, GRADS[:5])
    assert_follows(Oracle(THETA, b2=lambda _: float(value)), updates, GRADS[:5])


@pytest.mark.parametrize("b2", [0.999, adafactor_decay()])
def test_under_x64(b2: Any) -> None:
    for dtype, bound in ((jnp.float64, 1e-12), (jnp.float32, BOUND)):
        with jax.enable_x64(True):
            theta, grads = jnp.asarray(THETA, dtype), jnp.asarray(GRADS, dtype)
            _, updates, states = run(scale_by_ember(b2), theta, grads)
            numbers = states.tables, states.bias_correction
            chex.assert_type(jax.tree.leaves(numbers), dtype)
        oracle = Oracle(THETA, b2=exact_decay if callable(b2) else b2)
        for grad, update in zip(GRADS, updates, strict=True):
            oracle.step(grad)
            np.testing.assert_allclose(update, oracle.update, rtol=bound)
