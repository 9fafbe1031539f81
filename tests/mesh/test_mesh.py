"""Sharded tables have the values of one device, and a replicated state."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from tests.mesh.training import (
    MODES,
    assert_replicated,
    make_mesh,
    make_tables,
    one_device,
    present,
    table_moments,
    train,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")

TABLES = make_tables()
LAYOUTS = [
    ((8,), P()),
    ((4, 2), P("x", "y")),
    ((2, 4), P("x", None)),
    ((4, 2), P(None, ("y", "x"))),
    ((2, 2, 2), P(("x", "z"), "y")),
]
every_mode = pytest.mark.parametrize("mode", MODES, ids=str)


@pytest.mark.parametrize(
    ("mode", "shardings_given", "shape", "spec"),
    [
        *((AxisType.Auto, True, *layout) for layout in LAYOUTS),
        (AxisType.Explicit, False, *LAYOUTS[1]),
        (AxisType.Explicit, False, *LAYOUTS[-1]),
        (AxisType.Auto, False, *LAYOUTS[-1]),
    ],
    ids=str,
)
def test_values_of_one_device(
    mode: AxisType, shardings_given: bool, shape: tuple[int, ...], spec: P
) -> None:
    mesh = make_mesh(mode, shape)
    sharding = NamedSharding(mesh, spec)
    given = dict.fromkeys(TABLES, sharding) if shardings_given else None
    tx = ember_optax.ember(1e-2, param_shardings=given)
    with jax.set_mesh(mesh):
        tables = jax.device_put(TABLES, sharding)
        jitted = jax.jit(train, static_argnums=0)
        result, state = jitted(tx, tables)
        again, _ = jitted(tx, tables)
    assert_replicated(table_moments(state), mesh)
    result, again = jax.device_get((result, again))
    chex.assert_trees_all_equal(result, again)
    chex.assert_trees_all_close(result, one_device(), rtol=1e-6, atol=1e-6)
    for name, table in TABLES.items():
        absent = np.asarray(present(table) == 0)
        chex.assert_trees_all_equal(result[name][absent], np.asarray(table)[absent])


@pytest.mark.parametrize(
    ("spec", "shardings_given"), [(P("x", "y"), False), (P(("x", "y"), None), True)]
)
def test_mesh_with_both_kinds_of_axes(spec: P, shardings_given: bool) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), tuple(MODES[::-1]))
    sharding = NamedSharding(mesh, spec)
    given = dict.fromkeys(TABLES, sharding) if shardings_given else None
    tx = ember_optax.ember(1e-2, param_shardings=given)
    with jax.set_mesh(mesh):
        result, state = jax.jit(train, static_argnums=0)(
            tx, jax.device_put(TABLES, sharding)
        )
    assert_replicated(table_moments(state), mesh)
    result = jax.device_get(result)
    chex.assert_trees_all_close(result, one_device(), rtol=1e-6, atol=1e-6)


def test_given_shardings_need_no_mesh_in_context() -> None:
    mesh = make_mesh(AxisType.Auto)
    shardings = {"embed": NamedSharding(mesh, P("x", "y"))}
    tx = ember_optax.scale_by_ember(param_shardings=shardings)
    tables = jax.device_put({"embed": TABLES["embed"]}, shardings)
    state = jax.jit(tx.init)(tables)
    _, new_state = jax.jit(tx.update)(tables, state)
    assert_replicated(table_moments((state, new_state)), mesh)


SPECS = {"embed": P("x", None), "lm_head": P("y", "x"), "mlp": P(None, "y")}


def with_ember(param_shardings: Any = None) -> Any:
    return ember_optax.with_ember(
        optax.adamw(1e-3),
        embed_learning_rate=1e-2,
        head_learning_rate=1e-3,
        max_norm=1.0,
        param_shardings=param_shardings,
    )


@every_mode
def test_with_ember_has_the_values_of_one_device(mode: AxisType) -> None:
    mesh = make_mesh(mode)
    params = TABLES | {"mlp": jax.random.normal(jax.random.key(2), (16, 16))}
    jitted = jax.jit(train, static_argnums=(0, 2))
    expected, _ = jax.device_get(jitted(with_ember(), params, 20))
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    tx = with_ember(shardings if mode == AxisType.Auto else None)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, shardings)
        assert_replicated(table_moments(jax.jit(tx.init)(params)), mesh)
        result, state = jitted(tx, params, 20)
    assert_replicated(table_moments(state), mesh)
    result = jax.device_get(result)
    chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-5)


@every_mode
def test_one_program_serves_every_step(mode: AxisType) -> None:
    mesh = make_mesh(mode)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    tx = with_ember(shardings if mode == AxisType.Auto else None)
    params = TABLES | {"mlp": jnp.ones((16, 16))}
    out = ember_optax.opt_state_shardings(tx, params, shardings)

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        params = jax.device_put(params, shardings)
        state = jax.jit(tx.init, out_shardings=out)(params)
        jitted = jax.jit(step, out_shardings=(shardings, out))
        compiled = jitted.lower(params, state).compile()
        # A compiled program refuses arguments of other types or shardings.
        for _ in range(2):
            params, state = compiled(params, state)
    assert_replicated(table_moments(state), mesh)
    assert state.body[0].mu["mlp"].sharding.spec == SPECS["mlp"]
