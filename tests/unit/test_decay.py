"""b2 as a schedule: over long runs, injected, and when a run goes on with another."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ember_optax import EmberState, adafactor_decay, scale_by_ember
from tests.oracle import Oracle, after_many_steps
from tests.unit.test_oracle import gradients, last, moments, normal, run

CONSTANT, SCHEDULE = 2e-6, 5e-6  # largest relative errors


def adafactor(exponent: float) -> Any:
    """The decay in float64, where the library has all digits of 1 - b2."""
    return lambda count: 1 - (np.float64(count) + 1) ** -exponent


# Long runs

STEPS = 100_000
CHECKED = [1, 2, 3, 10, 100, 1000, 3000, 10_000, 30_000, STEPS]
CONSTANTS = [0.0, 0.9, 0.95, 0.999, 0.9999]
EXPONENTS = [0.5, 0.8, 1.0]
SCHEDULES = {
    "linear": optax.linear_schedule(0.9, 0.9995, 50_000),
    "cosine": optax.cosine_decay_schedule(0.999, 20_000, 0.5),
    "piecewise": optax.piecewise_constant_schedule(0.9, {500: 1.1, 20_000: 0.5}),
    "warmup": optax.linear_schedule(0.0, 0.999, 1000),
    "0 on the way": lambda count: jnp.where(count == 5000, 0.0, 0.9995),
}
# A statistic is rounded in every step, by 2.5e-8 at random. Over an average of 10^4
# steps and more this is more than the bounds.
LONG_AVERAGES = {0.9999: 8e-6, "1 - t^-1.0": 2e-5}


@functools.cache
def long_gradients() -> np.ndarray:
    """Tokens in every step, in few of them, and twice with a long gap in between."""
    rng = np.random.default_rng(0)
    grads = np.exp(rng.normal(size=(7, 1))) * rng.normal(size=(STEPS, 7, 3))
    seen = rng.random((STEPS, 7)) < [1, 1, 0.3, 0.01, 0.001, 0, 0]
    seen[np.array(CHECKED) - 1, 4] = True
    seen[[0, 9999, STEPS - 1], 5] = True
    seen[[999, STEPS - 1], 6] = True
    return np.float32(grads * seen[..., None])


def check_long_run(b2: Any, b2s: np.ndarray | None, bound: float, rounding: float):
    """Compares a run with the oracle.

    Args:
      b2: of the library.
      b2s: of every step, if they are not what `b2` returns to the library.
      bound: of the correction's error.
      rounding: bound of the updates' error.
    """
    tx = scale_by_ember(b2)

    def step(state: EmberState, grad: jax.Array) -> Any:
        decay = jnp.float32(b2(state.count) if callable(b2) else b2)
        update, state = tx.update(grad, state)
        return state, (update, state.remaining.log, decay)

    grads = long_gradients()
    scan = jax.jit(lambda grads: jax.lax.scan(step, tx.init(grads[0]), grads)[1])
    updates, logs, seen = jax.device_get(scan(grads))
    b2s = seen if b2s is None else b2s
    for t in CHECKED:
        expected, correction = after_many_steps(grads[:t], b2s[:t])
        found = -np.expm1(np.float64(logs[t - 1]))
        np.testing.assert_allclose(found, correction, rtol=bound)
        np.testing.assert_allclose(updates[t - 1], expected, rtol=rounding)


@pytest.mark.parametrize("b2", CONSTANTS)
def test_long_runs_with_a_constant(b2: float) -> None:
    rounding = LONG_AVERAGES.get(b2, CONSTANT)
    check_long_run(b2, np.full(STEPS, b2), CONSTANT, rounding)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_long_runs_with_adafactors_decay(exponent: float) -> None:
    b2s = adafactor(exponent)(np.arange(STEPS))
    rounding = LONG_AVERAGES.get(f"1 - t^-{exponent}", SCHEDULE)
    check_long_run(adafactor_decay(exponent), b2s, SCHEDULE, rounding)


@pytest.mark.usefixtures("standard_promotion")  # schedules divide by an integer
@pytest.mark.parametrize("name", SCHEDULES)
def test_long_runs_with_a_schedule(name: str) -> None:
    check_long_run(SCHEDULES[name], None, SCHEDULE, SCHEDULE)


def test_the_two_oracles_agree() -> None:
    grads, b2 = gradients((7, 3), 50, sparse=True), adafactor(0.8)
    oracle = Oracle(np.zeros((7, 3)), b2=b2)
    for grad in grads:
        oracle.step(grad)
    update, correction = after_many_steps(grads, b2(np.arange(50)))
    np.testing.assert_allclose(update, oracle.update, rtol=1e-13)
    np.testing.assert_allclose(correction, 1 - oracle.remaining, rtol=1e-13)


def test_statistics_of_gradients_that_stay_the_same_do_not_drift() -> None:
    # Where every step rounds in the same direction it adds up, to 7e-4 here.
    tx, grad = scale_by_ember(1 - 1e-5), jnp.full((4, 2), 0.7)
    state = tx.init(grad)
    state, _ = jax.lax.scan(
        lambda state, _: (tx.update(grad, state)[1], None), state, length=50_000
    )
    correction = -np.expm1(50_000 * np.log1p(-1e-5))
    for x in state.tables[""]:
        np.testing.assert_allclose(x, 0.49 * correction, rtol=2e-5)


# Under inject_hyperparams and in one run after the other

SHAPE = (12, 5)
THETA, GRADS = normal(SHAPE), gradients(SHAPE, 60, sparse=True)


def follow(oracle: Oracle, updates: Any, grads: Any, bound: float) -> None:
    for grad, update in zip(grads, updates, strict=True):
        oracle.step(grad)
        np.testing.assert_allclose(update, oracle.update, rtol=bound)


@pytest.mark.parametrize("b2", [adafactor_decay(), SCHEDULES["warmup"]])
def test_an_injected_schedule(b2: Any) -> None:
    tx = optax.inject_hyperparams(scale_by_ember)(b2)
    _, updates, states = run(tx, THETA, GRADS)
    decays = states.hyperparams["b2"]
    assert decays.dtype == jnp.float32
    np.testing.assert_allclose(decays, jax.vmap(b2)(jnp.arange(60)), atol=1e-7)
    follow(Oracle(THETA, b2=lambda t: decays[t]), updates, GRADS, SCHEDULE)


def test_an_injected_value_that_changes_by_hand() -> None:
    decays = np.float32([0.999, 0.9, 0.0, 0.95, 0.9999])
    tx = optax.inject_hyperparams(scale_by_ember)(0.5)
    state, updates, update_fn = tx.init(THETA), [], jax.jit(tx.update)
    for decay, grad in zip(decays, GRADS, strict=False):
        state.hyperparams["b2"] = jnp.asarray(decay)
        update, state = update_fn(grad, state)
        updates.append(update)
    oracle = Oracle(THETA, b2=lambda t: decays[t])
    follow(oracle, updates, GRADS[:5], CONSTANT)
    assert update_fn._cache_size() == 1


def test_a_run_that_goes_on_with_another_b2() -> None:
    parts = [(0.999, 20), (adafactor_decay(), 20), (0.95, 20)]
    state, updates = scale_by_ember().init(THETA), []
    for b2, steps in parts:
        update_fn = jax.jit(scale_by_ember(b2).update)
        for grad in GRADS[len(updates) : len(updates) + steps]:
            update, state = update_fn(grad, state)
            updates.append(update)
    b2 = lambda t: [0.999, adafactor(0.8)(t), 0.95][t // 20]  # noqa: E731
    oracle = Oracle(THETA, b2=b2)
    follow(oracle, updates, GRADS, SCHEDULE)
    correction = -np.expm1(np.float64(state.remaining.log))
    np.testing.assert_allclose(correction, 1 - oracle.remaining, rtol=SCHEDULE)


# Types


@pytest.mark.parametrize(
    "value",
    [0.9, 0, np.float64(0.9), np.float32(0.9), jnp.float32(0.9), jnp.int32(0)],
    ids=lambda x: f"{type(x).__name__} {x}",
)
def test_a_schedule_may_return_any_number(value: Any) -> None:
    _, updates, _ = run(scale_by_ember(lambda _: value), THETA, GRADS[:5])
    b2 = float(value) if isinstance(value, (int, float)) else np.float32(value)
    follow(Oracle(THETA, b2=b2), updates, GRADS[:5], CONSTANT)


def test_no_nan_on_the_way() -> None:
    """The logarithm of the first decay, 0, is infinite."""
    with jax.debug_nans(True):
        tx = scale_by_ember(adafactor_decay())
        tx.update(GRADS[0], tx.init(THETA))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("b2", [0.999, adafactor_decay()])
def test_under_x64(b2: Any, dtype: Any) -> None:
    bound = 1e-12 if dtype == jnp.float64 else CONSTANT
    with jax.enable_x64(True):
        grads = jnp.asarray(GRADS, dtype)
        _, updates, states = run(scale_by_ember(b2), jnp.asarray(THETA, dtype), grads)
        chex.assert_type(jax.tree.leaves((states.tables, states.remaining)), dtype)
    oracle = Oracle(THETA, b2=adafactor(0.8) if callable(b2) else b2)
    follow(oracle, updates, GRADS, bound)
    np.testing.assert_allclose(last(moments(states))[0], oracle.row, rtol=bound)
