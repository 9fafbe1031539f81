"""Clipping on a mesh: the values of one device, and no collective beyond its norm's."""

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
from examples.lm.hlo import collectives
from tests.compiling import all_reduce, holds_no_squares

# XLA:CPU stores the squares of a part of 16 x 128, as if it were not worth a fusion.
# The smallest part of a table here is 32 x 512.
SHAPES = {"embed": (2048, 64), "lm_head": (64, 2048), "mlp": (32, 64), "norm": (32,)}
SPECS = {"embed": P("x"), "lm_head": P("y", "x"), "mlp": P("x", "y"), "norm": P()}
MODES = pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=str)


def make_mesh(mode: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(mode, mode))


def shardings_on(mesh: jax.sharding.Mesh) -> dict[str, NamedSharding]:
    return {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}


def make_inner(mesh: jax.sharding.Mesh | None, **options: Any) -> Any:
    if mesh is not None and AxisType.Auto in mesh.axis_types:
        options["param_shardings"] = shardings_on(mesh)
    tables = ember_optax.ember(1e-2, **options)
    return optax.multi_transform(
        {"table": tables, "body": optax.sgd(0.1)}, ember_optax.label_token_tables
    )


def make_tree(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def train(tx: Any, shardings: Any) -> tuple[Any, Any]:
    params = jax.device_put(make_tree(0), shardings)
    state = tx.init(params)
    for seed in (1, 2, 3):
        grads = jax.device_put(make_tree(seed), shardings)
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get((params, state))


def compile_on(mesh: jax.sharding.Mesh, tx: Any) -> Any:
    shardings = shardings_on(mesh)
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=shardings[name])
        for name, shape in SHAPES.items()
    }
    placed = ember_optax.opt_state_shardings(tx, params, shardings)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        placed,
    )

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(shardings, placed))
    return jitted.lower(params, state, params).compile()


@MODES
@pytest.mark.parametrize("row_state", ["replicated", "sharded"])
def test_values_are_those_of_one_device(mode: AxisType, row_state: Any) -> None:
    mesh = make_mesh(mode)
    inner = make_inner(mesh, row_state=row_state)
    with jax.set_mesh(mesh):
        found = train(ember_optax.clipped(inner, 1.0), shardings_on(mesh))
    chain = optax.chain(optax.clip_by_global_norm(1.0), make_inner(None))
    params, (_, state) = train(chain, None)
    chex.assert_trees_all_close(found, (params, state), rtol=2e-5, atol=1e-7)


def compile_clipped(mode: AxisType) -> Any:
    mesh = make_mesh(mode)
    with jax.set_mesh(mesh):
        return compile_on(mesh, ember_optax.clipped(make_inner(mesh), 1.0))


SUMS = sum(SHAPES["embed"] + SHAPES["lm_head"])


@MODES
def test_the_norm_of_tables_needs_no_collective_of_its_own(mode: AxisType) -> None:
    # That of the body is added up over one axis of the mesh and then over the other.
    expected = [all_reduce(SUMS), all_reduce(1), all_reduce(1)]
    assert sorted(collectives(compile_clipped(mode).as_text())) == sorted(expected)


@holds_no_squares
@MODES
def test_nothing_as_large_as_a_device_s_part_of_a_table_is_stored(
    mode: AxisType,
) -> None:
    # The sums of all devices, before and after they are added up.
    bound = 2 * 4 * SUMS + 1e3
    assert bound < 4 * np.prod(SHAPES["lm_head"]) / 8  # the smaller part
    assert compile_clipped(mode).memory_analysis().temp_size_in_bytes < bound
