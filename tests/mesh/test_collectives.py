"""Collectives and temporaries of a step on sharded tables, read from the HLO."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from tests.compiling import bytes_of, compile_on_mesh, sharded_state
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


def compile_step(
    mode: AxisType,
    layout: str,
    shapes: list[tuple[int, int]],
    *,
    shardings_given: bool = True,
    alone: bool = False,
) -> Any:
    """Compiles a clipped step of several tables, or of Ember alone."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(mode, mode))
    sharding = NamedSharding(mesh, LAYOUTS[layout])
    params = {
        f"table_{i}": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        for i, shape in enumerate(shapes)
    }
    is_given = mode == AxisType.Auto and shardings_given
    given = dict.fromkeys(params, sharding) if is_given else None
    if alone:
        tx = ember_optax.ember(1e-2, param_shardings=given)
    else:
        tx = ember_optax.with_ember(
            optax.adamw(1e-3),
            head_learning_rate=1e-2,
            max_norm=1.0,
            labels=dict.fromkeys(params, "head"),
            param_shardings=given,
        )
    return compile_on_mesh(tx, params)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("mode", "n_tables", "alone"),
    [
        (AxisType.Auto, 4, False),
        (AxisType.Explicit, 2, False),
        (AxisType.Auto, 2, True),
    ],
    ids=str,
)
def test_one_all_reduce_for_all_tables(
    mode: AxisType, layout: str, n_tables: int, alone: bool
) -> None:
    """It serves the statistics and, with clipping, the norm."""
    shapes = SHAPES[:n_tables]
    compiled = compile_step(mode, layout, shapes, alone=alone)
    floats = sum(map(sum, shapes))
    all_reduce = Collective("all-reduce", floats, 4 * floats)
    assert collectives(compiled.as_text()) == [all_reduce]


@pytest.mark.parametrize("layout", ["columns", "both"])
def test_without_shardings_xla_needs_several_collectives(layout: str) -> None:
    # The number above is not what XLA would do by itself.
    compiled = compile_step(
        AxisType.Auto, layout, SHAPES[:2], shardings_given=False, alone=True
    )
    found = collectives(compiled.as_text())
    assert len(found) >= 3
    # Each replicated vector is gathered once.
    assert sum(c.bytes for c in found) < 1.5 * 4 * sum(map(sum, SHAPES[:2]))


@pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2),
    reason="XLA:CPU stores the squares of every gradient before jax 0.10.2",
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_temporary_of_the_size_of_a_shard(layout: str) -> None:
    shapes = [(50304, 768)] * 2
    compiled = compile_step(AxisType.Explicit, layout, shapes)
    state_bytes = 4 * sum(map(sum, shapes))
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < state_bytes + 1e6


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
