"""Stochastic rounding: its expected value, and independence of its random bits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats

import ember_optax

# optax.apply_updates adds float32 to bfloat16.
pytestmark = pytest.mark.usefixtures("standard_promotion")

HALVES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
SHAPE = (300, 200)


def make(seed: int) -> Any:
    return ember_optax.stochastic_rounding(seed)


@functools.partial(jax.jit, static_argnames="seed")
def apply(params: Any, updates: Any, step: Any, seed: int = 0) -> Any:
    """Adds updates as the given step of a run."""
    tx = make(seed)
    state = tx.init(params)._replace(count=jnp.asarray(step, jnp.int32))
    updates, _ = tx.update(updates, state, params)
    return optax.apply_updates(params, updates)


@HALVES
@pytest.mark.parametrize("value", [-1.2345, 0.0, 300.0])
@pytest.mark.parametrize("share", [0.003, 0.3, 0.5, 0.9, 3.7, -0.3])
def test_the_expected_value_is_exact(dtype: Any, value: float, share: float) -> None:
    """Also for updates far below half a unit in the last place."""
    start = jnp.full(SHAPE, value, dtype)
    above = jnp.nextafter(start[0, 0], jnp.array(jnp.inf, dtype))
    # Around 0 there are numbers that processors flush to it.
    unit = max(abs(float(above) - float(start[0, 0])), 1e-30)
    update = jnp.full(SHAPE, share * unit, jnp.float32)
    moved = [
        np.asarray(apply({"t": start}, {"t": update}, step)["t"], np.float64)
        for step in range(5)
    ]
    change = np.concatenate(moved).ravel() - float(start[0, 0])
    expected = float(update[0, 0])
    error = change.std() / np.sqrt(change.size)
    assert abs(change.mean() - expected) < 4 * error + 1e-6 * abs(expected)
    if 0 < abs(share) < 1:
        assert len(np.unique(change)) == 2


@HALVES
def test_sums_that_need_no_rounding_are_kept(dtype: Any) -> None:
    params = {"t": jnp.array([1.0, 2.0, -3.0, 0.0], dtype)}
    updates = {"t": jnp.array([1.0, -2.0, 0.5, 0.0], dtype)}
    after = apply(params, updates, 7)
    np.testing.assert_array_equal(after["t"], params["t"] + updates["t"])


@HALVES
def test_nonfinite_results_are_preserved(dtype: Any) -> None:
    largest = float(jnp.finfo(dtype).max)
    params = {"t": jnp.array([largest, 1.0, 1.0], dtype)}
    updates = {"t": jnp.array([0.0, np.inf, np.nan], jnp.float32)}
    after = np.asarray(apply(params, updates, 3)["t"], np.float32)
    assert after[0] == largest
    assert np.isinf(after[1])
    assert np.isnan(after[2])


def test_float32_is_left_alone() -> None:
    params = {"t": jnp.ones(SHAPE)}
    updates = {"t": jnp.full(SHAPE, 1e-9)}
    tx = make(0)
    found, state = tx.update(updates, tx.init(params), params)
    assert found["t"] is updates["t"]
    assert state.count == 1


def rounded_up(step: int = 1, path: str = "embed", seed: int = 0) -> np.ndarray:
    """Marks where 1 and half a unit in its last place become the number above 1."""
    params = {path: jnp.ones(SHAPE, jnp.bfloat16)}
    updates = {path: jnp.full(SHAPE, 2.0**-8)}
    return np.asarray(apply(params, updates, step, seed)[path] > 1)


def test_bits_are_independent() -> None:
    x = rounded_up()
    pairs = [
        *((x, rounded_up(step=step)) for step in (2, 1025)),
        (x, rounded_up(seed=1)),
        (x, rounded_up(path="lm_head")),
        (x[:, :-1], x[:, 1:]),
        (x[:-1], x[1:]),
        (x[:-1, 1:], x[1:, :-1]),
    ]
    for a, b in pairs:
        table = np.histogram2d(a.ravel(), b.ravel(), bins=2)[0]
        assert stats.chi2_contingency(table).pvalue > 1e-4


@pytest.mark.parametrize("spec", [P("x", None), P("y", "x"), P()])
def test_every_mesh_rounds_alike(spec: P) -> None:
    rng = np.random.default_rng(0)
    params = {"t": jnp.asarray(rng.standard_normal((16, 8)), jnp.bfloat16)}
    updates = {"t": jnp.asarray(1e-3 * rng.standard_normal((16, 8)), jnp.float32)}
    expected = apply(params, updates, 5)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2), ("x", "y"), (kind, kind))
        with jax.set_mesh(mesh):
            place = NamedSharding(mesh, spec)
            found = apply(*jax.device_put((params, updates), place), 5)
        np.testing.assert_array_equal(found["t"], expected["t"])


def test_small_updates_of_ember_are_not_lost() -> None:
    """Rounded to the nearest, a bfloat16 table of ones does not move at this rate."""
    grads = {"embed": jnp.ones((64, 8), jnp.bfloat16)}
    tables = {}
    for name, last in {"nearest": optax.identity(), "stochastic": make(0)}.items():
        tx = optax.chain(ember_optax.ember(1e-4), last)
        params = {"embed": jnp.ones((64, 8), jnp.bfloat16)}
        state = tx.init(params)
        update_fn = jax.jit(tx.update)
        for _ in range(100):
            updates, state = update_fn(grads, state, params)
            params = optax.apply_updates(params, updates)
        tables[name] = np.asarray(params["embed"], np.float32)
    assert (tables["nearest"] == 1).all()
    np.testing.assert_allclose(tables["stochastic"].mean(), 1 - 100 * 1e-4, atol=5e-4)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, None, True, "0"])
def test_invalid_seed_raises(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"seed must be an int in \[0, 2\^32\)"):
        make(seed)


def test_params_are_needed() -> None:
    tx = make(0)
    with pytest.raises(ValueError, match="pass params to update"):
        tx.update({"t": jnp.ones(2)}, tx.init({"t": jnp.ones(2)}))
