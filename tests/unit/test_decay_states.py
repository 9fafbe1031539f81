"""States of runs with a schedule of b2: converted, resized, sharded and donated."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from ember_optax import EmberState, adafactor_decay, lazy, scale_by_ember
from ember_optax.experimental import fused
from tests.unit.test_decay import GRADS, SCHEDULE, SCHEDULES, SHAPE, THETA, adafactor
from tests.unit.test_oracle import run

# Conversions


def adam_state(steps: int, b2: Any) -> optax.ScaleByAdamState:
    """What an Adam with that decay knows, whose own b2 cannot be a schedule."""
    nu = np.zeros(SHAPE)
    for t, grad in enumerate(GRADS[:steps]):
        nu = b2(t) * nu + (1 - b2(t)) * np.float64(grad) ** 2
    mu = jnp.zeros(SHAPE)
    return optax.ScaleByAdamState(jnp.int32(steps), {"": mu}, {"": jnp.float32(nu)})


def ember_state(steps: int, b2: Any) -> EmberState:
    _, _, states = run(scale_by_ember(b2), THETA, GRADS[:steps])
    return jax.tree.map(lambda x: x[-1], states)


SAME = {"adam_b2": adafactor_decay(), "ember_b2": adafactor_decay()}
TABLE = {"": jnp.asarray(THETA)}


def without_name(state: EmberState) -> EmberState:
    return state._replace(tables={"": state.tables["table"]})


@pytest.mark.parametrize("jitted", [False, True])
def test_from_adam_with_the_same_schedule_is_embers_own_state(jitted: bool) -> None:
    old, tx = adam_state(40, adafactor(0.8)), scale_by_ember(adafactor_decay())
    convert = lambda old: ember_optax.from_adam(old, tx, TABLE, **SAME)  # noqa: E731
    state = (jax.jit(convert) if jitted else convert)(old)
    expected = without_name(ember_state(40, adafactor_decay()))
    chex.assert_trees_all_close(state, expected, rtol=SCHEDULE, atol=1e-5)
    chex.assert_trees_all_close(state.tables, expected.tables, rtol=SCHEDULE)
    assert state.count == 40


@pytest.mark.parametrize("ember_b2", [adafactor_decay(), SCHEDULES["warmup"]])
@pytest.mark.parametrize("steps", [0, 1, 40])
def test_from_adam_to_a_schedule_and_back(steps: int, ember_b2: Any) -> None:
    old, tx = adam_state(steps, lambda _: 0.99), scale_by_ember(ember_b2)
    decays = {"adam_b2": 0.99, "ember_b2": ember_b2}
    state = ember_optax.from_adam(old, tx, TABLE, **decays)
    share = -np.expm1(np.float64(state.remaining.log))
    mean = np.mean(np.float64(old.nu[""]), 1) / max(1 - 0.99**steps, 1e-9)
    np.testing.assert_allclose(state.tables[""].row, share * mean, rtol=SCHEDULE)
    adam = optax.scale_by_adam(b2=0.99)
    back = ember_optax.to_adam(state, adam, TABLE, **decays)
    np.testing.assert_allclose(back.nu[""].mean(1), old.nu[""].mean(1), rtol=SCHEDULE)
    again = ember_optax.from_adam(back, tx, TABLE, **decays)
    chex.assert_trees_all_close(again, state, rtol=SCHEDULE)


@pytest.mark.usefixtures("standard_promotion")
def test_tables_of_ember_keep_the_product_of_their_own_decays() -> None:
    params = {"embed": jnp.ones((12, 5)), "head": jnp.ones((5, 12))}
    make = lambda labels: optax.multi_transform(  # noqa: E731
        {"table": scale_by_ember(adafactor_decay()), "body": optax.adam(1e-2)}, labels
    )
    mixed, tx = make({"embed": "table", "head": "body"}), make("table")
    state = mixed.init(params)
    for _ in range(5):
        _, state = mixed.update(params, state, params)
    moved = ember_optax.from_adam(state, tx, params, ember_b2=0.5)
    before = optax.tree.get(state, "remaining")
    assert before.log < 0
    chex.assert_trees_all_equal(optax.tree.get(moved, "remaining"), before)


# What else holds the state


def test_resize_keeps_the_product() -> None:
    state = without_name(ember_state(40, adafactor_decay()))
    resized = ember_optax.resize_vocab(state, TABLE, {"": jnp.zeros((15, 5))})
    assert state.remaining.error != 0
    chex.assert_trees_all_equal(resized.remaining, state.remaining)


def test_shardings_replicate_the_product() -> None:
    mesh = jax.make_mesh((4,), ("x",))
    sharding = NamedSharding(mesh, P("x", None))
    tx = scale_by_ember(adafactor_decay())
    found = ember_optax.opt_state_shardings(tx, TABLE, sharding, row_state="sharded")
    assert {x.spec for x in found.remaining} == {P()}
    jax.jit(tx.init, out_shardings=found)(TABLE)


def test_a_donated_state_is_neither_copied_nor_compiled_again() -> None:
    tx = scale_by_ember(adafactor_decay())
    update_fn = jax.jit(tx.update, donate_argnums=1)
    state = tx.init(THETA)
    for grad in GRADS[:3]:
        before = state
        _, state = update_fn(grad, state)
        assert all(x.is_deleted() for x in jax.tree.leaves(before))
    assert update_fn._cache_size() == 1


@pytest.mark.parametrize("module", [lazy, fused], ids=["lazy", "fused"])
def test_refused_where_b2_must_be_one_number(module: Any) -> None:
    table = jnp.asarray(THETA)
    state = module.init(table)
    rows = (jnp.arange(12),) if module is lazy else ()
    step = jax.jit(
        functools.partial(module.apply, learning_rate=1e-2, b2=adafactor_decay()),
        donate_argnums=(0, 1),
    )
    with pytest.raises(ValueError, match=r"b2 is the schedule .*Adafactor.*ember") as e:
        step(table, state, *rows, GRADS[0])
    assert "\n" not in str(e.value)
    assert not any(x.is_deleted() for x in jax.tree.leaves((table, state)))
