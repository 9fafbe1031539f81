"""The budgets of test_memory.py and test_collectives.py, by the real TPU compiler.

No TPU is needed: libtpu compiles for slices that are only described.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from benchmarks.collectives.run import MESHES
from benchmarks.step.compiling import clipped, compile_step
from benchmarks.step.tpu import CHIPS, chip
from benchmarks.step.traffic import bytes_accessed
from benchmarks.step.training import compile_training_step
from ember_optax import lazy
from examples.lm import topology
from examples.lm.hlo import collectives
from tests.compiling import all_reduce, compile_ember
from tests.mesh.test_lazy_mesh import BATCH, D, compile_on

pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jax[tpu]'")

SHAPES = [(131072, 4096), (4096, 131072), (131072, 2048), (65536, 4096)]
LAYOUTS = {"rows": P("x", None), "columns": P(None, "x"), "both": P("x", "y")}

# The others are in benchmarks/collectives/results.json: a compilation takes seconds.
SLICES = {"v5p:4x4x4": MESHES["v5p:4x4x4"], "tpu7x:2x2x1": (4, 2)}
each_slice = pytest.mark.parametrize("name", SLICES)
# Each compilation takes seconds, so the number of tables varies with the mode.
each_mode = pytest.mark.parametrize(
    ("mode", "n_tables"), [(AxisType.Auto, 2), (AxisType.Explicit, 4)], ids=str
)


def make_mesh(name: str, mode: AxisType) -> jax.sharding.Mesh:
    devices = topology.devices(name)
    return jax.make_mesh(SLICES[name], ("x", "y"), (mode, mode), devices=devices)


def assert_no_large_temporary(
    compiled: Any, shapes: list[tuple[int, int]], name: str
) -> None:
    """No shard is stored, of which the smallest takes 17 MB; only statistics are."""
    # Those before and those after the collective; other families have them on the chip.
    copies = 2 if name.startswith("tpu7x") else 1
    state_bytes = copies * 4 * sum(map(sum, shapes))
    # The row sums of one table live on until its roots have seen whether they overflow.
    row_sums = 4 * max(map(max, shapes))
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < state_bytes + row_sums + 5e5 * len(shapes)


@each_slice
@pytest.mark.parametrize(
    ("layout", "mode", "n_tables"),
    [
        ("rows", AxisType.Auto, 2),
        ("columns", AxisType.Explicit, 4),
        ("both", AxisType.Auto, 4),
        ("both", AxisType.Explicit, 2),
    ],
    ids=str,
)
def test_one_all_reduce_for_all_tables(
    name: str, layout: str, mode: AxisType, n_tables: int
) -> None:
    shapes = SHAPES[:n_tables]
    compiled = compile_ember(make_mesh(name, mode), LAYOUTS[layout], shapes)
    assert collectives(compiled.as_text()) == [all_reduce(sum(map(sum, shapes)))]
    assert_no_large_temporary(compiled, shapes, name)


@each_slice
@each_mode
def test_sharded_rows_need_no_collective_of_their_own(
    name: str, mode: AxisType, n_tables: int
) -> None:
    shapes = [(131072, 4096), (65536, 2048), (32768, 4096), (131072, 2048)][:n_tables]
    compiled = compile_ember(
        make_mesh(name, mode), LAYOUTS["rows"], shapes, row_state="sharded"
    )
    columns = sum(d for _, d in shapes)
    assert collectives(compiled.as_text()) == [all_reduce(columns)]
    assert_no_large_temporary(compiled, shapes, name)


def test_without_shardings_xla_needs_several_collectives() -> None:
    # So the numbers above are not what the compiler would do anyway.
    compiled = compile_ember(
        make_mesh("v5p:4x4x4", AxisType.Auto),
        LAYOUTS["both"],
        SHAPES[:2],
        shardings_given=False,
    )
    assert len(collectives(compiled.as_text())) >= 3


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, jnp.float32) for name in SLICES), ("v5p:4x4x4", jnp.bfloat16)],
)
def test_lazy_rows_are_written_in_place(name: str, dtype: Any) -> None:
    rows = NamedSharding(make_mesh(name, AxisType.Explicit), P(("x", "y")))
    step = functools.partial(lazy.apply, learning_rate=1e-2)
    n_rows = 10**6 * rows.mesh.size
    compiled = compile_on(rows, n_rows, step, dtype, donate_argnums=(0, 1))
    # One chip's part of `last` alone takes 4 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 2e6
    # The batch and the sums of the columns, whatever the table holds.
    assert sum(c.elements for c in collectives(compiled.as_text())) <= 2 * BATCH * (
        D + 2
    )


both_dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 100)
VARIANTS = {
    "plain": ember_optax.ember(1e-2),
    "active": ember_optax.ember(1e-2, column_mean="active"),
    "clipped": ember_optax.clipped(
        ember_optax.ember(SCHEDULE, ember_optax.adafactor_decay(), weight_decay=0.1),
        max_norm=1.0,
    ),
    "rounded": optax.chain(ember_optax.ember(1e-2), ember_optax.stochastic_rounding(0)),
}


# Each compilation takes seconds, so not every variant meets every family.
CASES = [
    *((variant, "v5p", (50304, 768)) for variant in VARIANTS),
    *(("clipped", family, (256128, 2048)) for family in CHIPS),
]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(("variant", "family", "shape"), CASES)
@both_dtypes
def test_both_statistics_are_taken_in_one_pass(
    variant: str, family: str, shape: tuple[int, int], dtype: Any
) -> None:
    table = jax.ShapeDtypeStruct(shape, dtype, sharding=chip(family))
    compiled = compile_step(VARIANTS[variant], table)
    # The gradient twice, the table, the new table; Adam takes 7.
    table_bytes = table.size * table.dtype.itemsize
    assert compiled.cost_analysis()["bytes accessed"] <= 4.05 * table_bytes
    assert compiled.memory_analysis().temp_size_in_bytes < 10**6


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((name, "both") for name in SLICES),
        ("v5p:4x4x4", "rows"),
        ("v5p:4x4x4", "columns"),
    ],
)
def test_sharded_statistics_are_taken_in_one_pass(name: str, layout: str) -> None:
    mesh = make_mesh(name, AxisType.Auto)
    compiled = compile_ember(mesh, LAYOUTS[layout], SHAPES[:2])
    n_shards = mesh.size if layout == "both" else mesh.shape["x"]
    shard_bytes = 2 * 4 * 131072 * 4096 / n_shards
    # The collective and its packing come on top. XLA counts 6.3 where shards are small:
    # it copies a gradient into on-chip memory before the update, and counts that too.
    assert bytes_accessed(compiled.as_text()) <= 4.3 * shard_bytes


def compile_head(name: str, tx: optax.GradientTransformation) -> Any:
    """Compiles what makes the gradient of a head, and the step behind clipping."""
    v, d, tokens, sharding = 131072, 4096, 8192, chip("v5p")

    def abstract(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def step(head: Any, state: Any, hidden: Any, error: Any) -> Any:
        product = jnp.einsum(
            "nd,nv->dv", hidden, error, preferred_element_type=jnp.bfloat16
        )
        updates, state = tx.update(product.astype(jnp.float32), state, head)
        return optax.apply_updates(head, updates), state

    tx = clipped(name, tx)
    head = abstract(jax.ShapeDtypeStruct((d, v), jnp.float32))
    state = abstract(jax.eval_shape(tx.init, head))
    hidden, error = (
        abstract(jax.ShapeDtypeStruct((tokens, n), jnp.bfloat16)) for n in (d, v)
    )
    jitted = jax.jit(step, donate_argnums=(0, 1))
    return jitted.lower(head, state, hidden, error).compile()


def test_statistics_of_a_head_are_taken_where_its_gradient_is_made() -> None:
    """With clipping, and for nothing: the epilogue of the matrix product has both."""
    ember = ember_optax.ember(1e-2, ember_optax.adafactor_decay(), vocab_axis=1)
    steps = compile_head("Ember", ember), compile_head("SGD", optax.sgd(1e-2))
    accessed, floor = (step.cost_analysis()["bytes accessed"] for step in steps)
    assert accessed <= 1.01 * floor
    peak, lowest = (s.memory_analysis().peak_memory_in_bytes for s in steps)
    assert peak <= lowest + 0.01 * 4 * 131072 * 4096


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("family", "dtype", "tied"),
    # A case takes half a minute; benchmarks/step/decoder.json has whole steps.
    [("v5p", jnp.bfloat16, True)],
)
def test_a_training_step_peaks_where_sgd_does(
    family: str, dtype: Any, tied: bool
) -> None:
    peak = {
        name: compile_training_step(name, sharding=chip(family), dtype=dtype, tied=tied)
        .memory_analysis()
        .peak_memory_in_bytes
        for name in ("SGD", "Ember")
    }
    assert peak["Ember"] <= peak["SGD"] + 0.01 * 131072 * 2048 * dtype.dtype.itemsize
