"""Collectives and temporaries of a step on sharded tables, read from the HLO."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from tests.compiling import (
    bytes_of,
    compile_clipped_on_mesh,
    compile_on_mesh,
    sharded_state,
    sharded_tables,
)
from tests.hlo import Collective, collectives

pytestmark = pytest.mark.usefixtures("standard_promotion")

SHAPES = [(1024, 64), (2048, 64), (64, 1024), (512, 128)]
LAYOUTS = {
    "rows": P("x", None),
    "columns": P(None, "x"),
    "both": P("x", "y"),
    "both, swapped": P("y", "x"),
    "rows over two axes": P(("x", "y"), None),
}


def make_sharding(mode: AxisType, layout: str) -> NamedSharding:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(mode, mode))
    return NamedSharding(mesh, LAYOUTS[layout])


def all_reduce_of(shapes: list[tuple[int, int]]) -> Collective:
    """One for the statistics of all tables, and, with clipping, for the norm."""
    floats = sum(map(sum, shapes))
    return Collective("all-reduce", floats, 4 * floats)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_all_reduce_for_all_tables(layout: str) -> None:
    compiled = compile_clipped_on_mesh(SHAPES, make_sharding(AxisType.Auto, layout))
    assert collectives(compiled.as_text()) == [all_reduce_of(SHAPES)]


@pytest.mark.parametrize("layout", ["columns", "both"])
def test_without_shardings_xla_needs_several_collectives(layout: str) -> None:
    # The number above is not what XLA would do by itself.
    shapes, sharding = SHAPES[:2], make_sharding(AxisType.Auto, layout)
    params = sharded_tables(shapes, sharding)
    with_shardings, without = (
        collectives(compile_on_mesh(tx, params).as_text())
        for tx in (
            ember_optax.ember(1e-2, param_shardings=dict.fromkeys(params, sharding)),
            ember_optax.ember(1e-2),
        )
    )
    assert with_shardings == [all_reduce_of(shapes)]
    assert len(without) >= 3
    # Each replicated vector is gathered once.
    assert sum(c.bytes for c in without) < 1.5 * all_reduce_of(shapes).bytes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_all_reduce_and_no_temporary_of_the_size_of_a_shard(layout: str) -> None:
    shapes = [(50304, 768)] * 2
    sharding = make_sharding(AxisType.Explicit, layout)
    compiled = compile_clipped_on_mesh(shapes, sharding)
    all_reduce = all_reduce_of(shapes)
    assert collectives(compiled.as_text()) == [all_reduce]
    # Before jax 0.10.2 XLA:CPU stores the squares of every gradient.
    if jax.__version_info__ >= (0, 10, 2):
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        assert temporaries < all_reduce.bytes + 1e6


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_monitor_reads_the_state_without_a_collective(mode: AxisType) -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(mode,))
    specs = {"embed": ((50304, 768), P("x", None)), "head": ((768, 50304), P("x"))}
    params = {
        name: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, spec)
        )
        for name, (shape, spec) in specs.items()
    }
    state = sharded_state(ember_optax.ember(1e-2), params)
    with jax.set_mesh(mesh):
        compiled = jax.jit(ember_optax.monitor).lower(state).compile()
        with_tables = jax.jit(
            lambda state, tables: ember_optax.monitor(state, params=tables)
        )
        text = with_tables.lower(state, params).compile().as_text()
    assert not collectives(compiled.as_text())
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * bytes_of(state)
    # Row means of the tables are gathered or added up, and nothing larger.
    assert max(c.elements for c in collectives(text)) <= 2 * 50304
