"""What the statistics of sharded tables cost in communication, read from the HLO."""

from typing import Any

import jax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from examples.lm.hlo import collectives
from tests.compiling import all_reduce, compile_ember, holds_no_squares

SHAPES = [(1024, 64), (2048, 64), (64, 1024), (512, 128)]
LAYOUTS = {
    "rows": P("x", None),
    "columns": P(None, "x"),
    "both": P("x", "y"),
    "both, swapped": P("y", "x"),
    "rows over two axes": P(("x", "y"), None),
}


def make_mesh(mode: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(mode, mode))


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_tables", [2, 4])
def test_one_all_reduce_for_all_tables(
    mode: AxisType, layout: str, n_tables: int
) -> None:
    shapes = SHAPES[:n_tables]
    compiled = compile_ember(make_mesh(mode), LAYOUTS[layout], shapes)
    assert collectives(compiled.as_text()) == [all_reduce(sum(map(sum, shapes)))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_shardings_xla_needs_several_collectives(layout: str) -> None:
    # So the numbers above are not what XLA would do anyway.
    compiled = compile_ember(
        make_mesh(AxisType.Auto), LAYOUTS[layout], SHAPES[:2], shardings_given=False
    )
    found = collectives(compiled.as_text())
    assert len(found) >= 3
    # All that is replicated is gathered once.
    assert sum(c.bytes for c in found) < 1.5 * 4 * sum(map(sum, SHAPES[:2]))


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("layout", ["rows", "rows over two axes"])
def test_sharded_rows_need_no_collective_of_their_own(
    mode: AxisType, layout: str
) -> None:
    compiled = compile_ember(
        make_mesh(mode), LAYOUTS[layout], SHAPES[:2], row_state="sharded"
    )
    assert collectives(compiled.as_text()) == [all_reduce(64 + 64)]


@holds_no_squares
@pytest.mark.parametrize("row_state", ["replicated", "sharded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_temporary_of_the_size_of_a_shard(layout: str, row_state: Any) -> None:
    shapes = [(50304, 768)] * 2
    compiled = compile_ember(
        make_mesh(AxisType.Explicit), LAYOUTS[layout], shapes, row_state=row_state
    )
    state_bytes = 4 * sum(map(sum, shapes))
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < state_bytes + 1e6
