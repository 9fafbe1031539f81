"""What the statistics of sharded tables cost in communication, read from the HLO."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from examples.lm.hlo import Collective, collectives

SHAPES = [(1024, 64), (2048, 64), (64, 1024), (512, 128)]
LAYOUTS = {
    "rows": P("x", None),
    "columns": P(None, "x"),
    "both": P("x", "y"),
    "both, swapped": P("y", "x"),
    "rows over two axes": P(("x", "y"), None),
}


def compile_step(
    mode: AxisType,
    spec: P,
    shapes: list[tuple[int, int]],
    *,
    shardings_given: bool = True,
    **options: Any,
) -> jax.stages.Compiled:
    """Compiles update and apply of several tables on 4 x 2 devices."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(mode, mode))
    sharding = NamedSharding(mesh, spec)
    params = {
        f"table_{i}": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        for i, shape in enumerate(shapes)
    }
    shardings = jax.tree.map(lambda x: x.sharding, params)
    given = mode == AxisType.Auto and shardings_given
    tx = ember_optax.ember(
        1e-2, param_shardings=shardings if given else None, **options
    )
    state_shardings = ember_optax.opt_state_shardings(tx, params, shardings, **options)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        state_shardings,
    )

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        jitted = jax.jit(step, donate_argnums=(0, 1))
        return jitted.lower(params, state, params).compile()


def all_reduce(n: int) -> Collective:
    """An all-reduce of n floats."""
    return Collective("all-reduce", n, 4 * n)


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_tables", [2, 4])
def test_one_all_reduce_for_all_tables(
    mode: AxisType, layout: str, n_tables: int
) -> None:
    shapes = SHAPES[:n_tables]
    compiled = compile_step(mode, LAYOUTS[layout], shapes)
    assert collectives(compiled.as_text()) == [all_reduce(sum(map(sum, shapes)))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_shardings_xla_needs_several_collectives(layout: str) -> None:
    # So the numbers above are not what XLA would do anyway.
    compiled = compile_step(
        AxisType.Auto, LAYOUTS[layout], SHAPES[:2], shardings_given=False
    )
    assert len(collectives(compiled.as_text())) >= 3


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("layout", ["rows", "rows over two axes"])
def test_sharded_rows_need_no_collective_of_their_own(
    mode: AxisType, layout: str
) -> None:
    compiled = compile_step(mode, LAYOUTS[layout], SHAPES[:2], row_state="sharded")
    assert collectives(compiled.as_text()) == [all_reduce(64 + 64)]


@pytest.mark.parametrize("row_state", ["replicated", "sharded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_temporary_of_the_size_of_a_shard(layout: str, row_state: Any) -> None:
    shapes = [(50304, 768)] * 2
    compiled = compile_step(
        AxisType.Explicit, LAYOUTS[layout], shapes, row_state=row_state
    )
    state_bytes = 4 * sum(map(sum, shapes))
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < state_bytes + 1e6
