"""The bounds of test_memory.py and test_collectives.py, by the real TPU compiler.

No TPU is needed: libtpu compiles for slices that are only described. A compilation
takes seconds, so each bound meets few cases here; the benchmarks have all of them.
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
from ember_optax import lazy
from tests.compiling import (
    SCHEDULE,
    chip,
    clip,
    compile_clipped_on_mesh,
    compile_step,
    compile_training_step,
    placed,
    tpu_devices,
)
from tests.hlo import Collective, bytes_accessed, collectives

pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jax[tpu]'")
pytestmark = pytest.mark.usefixtures("no_cache", "standard_promotion")

SHAPES = [(131072, 4096), (4096, 131072), (131072, 2048), (65536, 4096)]
LAYOUTS = {"rows": P("x", None), "columns": P(None, "x"), "both": P("x", "y")}
SLICES = {"v5p:4x4x4": (16, 4), "tpu7x:2x2x1": (4, 2)}


def make_mesh(name: str, mode: AxisType) -> jax.sharding.Mesh:
    devices = tpu_devices(name)
    return jax.make_mesh(SLICES[name], ("x", "y"), (mode, mode), devices=devices)


def with_ember(body: optax.GradientTransformation, **options: Any) -> Any:
    rates = {"embed_learning_rate": SCHEDULE, "head_learning_rate": 1e-2}
    return ember_optax.with_ember(body, max_norm=1.0, **rates, **options)


@pytest.mark.parametrize(
    ("name", "layout", "mode", "n_tables"),
    [
        ("v5p:4x4x4", "rows", AxisType.Auto, 2),
        ("v5p:4x4x4", "columns", AxisType.Explicit, 4),
        ("v5p:4x4x4", "both", AxisType.Auto, 4),
        ("tpu7x:2x2x1", "both", AxisType.Explicit, 2),
    ],
    ids=str,
)
def test_one_all_reduce_and_one_pass(
    name: str, layout: str, mode: AxisType, n_tables: int
) -> None:
    """With clipping: the norm of the tables needs no collective of its own."""
    shapes, mesh = SHAPES[:n_tables], make_mesh(name, mode)
    sharding = NamedSharding(mesh, LAYOUTS[layout])
    compiled = compile_clipped_on_mesh(shapes, sharding)
    floats = sum(map(sum, shapes))
    all_reduce = Collective("all-reduce", floats, 4 * floats)
    assert collectives(compiled.as_text()) == [all_reduce]
    # No shard is stored, of which the smallest takes 17 MB: only the means before the
    # collective and, in the memory of tpu7x, those after it.
    copies = 2 if name.startswith("tpu7x") else 1
    row_means = 4 * max(map(max, shapes))
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < copies * 4 * floats + row_means + 5e5 * len(shapes)
    # Gradients twice, tables twice. The collective and its packing come on top.
    n_shards = mesh.size if layout == "both" else mesh.shape["x"]
    shard_bytes = sum(4 * v * d for v, d in shapes) / n_shards
    assert bytes_accessed(compiled.as_text()) <= 4.3 * shard_bytes


def test_lazy_rows_are_written_in_place() -> None:
    rows = NamedSharding(make_mesh("v5p:4x4x4", AxisType.Explicit), P(("x", "y")))
    n_rows, d, batch = 10**6 * rows.mesh.size, 16, 64
    table = jax.ShapeDtypeStruct((n_rows, d), jnp.float32, sharding=rows)
    with jax.set_mesh(rows.mesh):
        state = jax.jit(lazy.init).eval_shape(table)
        replicated = NamedSharding(rows.mesh, P())
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=rows if n_rows in x.shape else replicated
            ),
            state,
        )
        ids = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=replicated)
        grads = jax.ShapeDtypeStruct((batch, d), jnp.float32, sharding=replicated)
        update = functools.partial(lazy.update, learning_rate=1e-2)
        step = jax.jit(update, donate_argnums=(0, 1))
        compiled = step.lower(table, state, ids, grads).compile()
    # One chip's part of `last_step` alone takes 4 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 2e6
    # The batch and the sums of the columns, whatever the table holds.
    moved = sum(c.elements for c in collectives(compiled.as_text()))
    assert moved <= 2 * batch * (d + 2)


TABLE = {"embed": "head", "norm": "body"}  # a tied table and something else
VARIANTS = {
    "alone": ember_optax.ember(1e-2),
    "with_ember": with_ember(optax.adamw(1e-3), labels=TABLE, weight_decay=0.1),
    "rounded": optax.chain(ember_optax.ember(1e-2), ember_optax.stochastic_rounding(0)),
}


@pytest.mark.parametrize(
    ("variant", "family", "shape", "dtype"),
    [
        ("alone", "v5p", (50304, 768), jnp.float32),
        ("rounded", "v5p", (50304, 768), jnp.bfloat16),
        ("with_ember", "v5p", (50304, 768), jnp.bfloat16),
        ("with_ember", "v5e", (256128, 2048), jnp.bfloat16),
        ("with_ember", "v6e", (256128, 2048), jnp.float32),
        ("with_ember", "tpu7x", (256128, 2048), jnp.bfloat16),
    ],
)
def test_both_statistics_are_taken_in_one_pass(
    variant: str, family: str, shape: tuple[int, int], dtype: Any
) -> None:
    table = jax.ShapeDtypeStruct(shape, dtype, sharding=chip(family))
    norm = jax.ShapeDtypeStruct(shape[1:], dtype, sharding=chip(family))
    params = {"embed": table}
    if variant == "with_ember":
        params |= {"norm": norm}
    compiled = compile_step(VARIANTS[variant], params)
    # The gradient twice, the table, the new table; Adam takes 7.
    table_bytes = table.size * table.dtype.itemsize
    assert compiled.cost_analysis()["bytes accessed"] <= 4.05 * table_bytes
    assert compiled.memory_analysis().temp_size_in_bytes < 10**6


def compile_head(tx: optax.GradientTransformation) -> Any:
    """Compiles the matrix product that makes the gradient of a head, and the step."""
    v, d, tokens, sharding = 131072, 4096, 8192, chip("v5p")

    def step(params: Any, state: Any, hidden: Any, error: Any) -> Any:
        product = jnp.einsum(
            "nd,nv->dv", hidden, error, preferred_element_type=jnp.bfloat16
        )
        grads = {"lm_head": product.astype(jnp.float32)}
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = {"lm_head": jax.ShapeDtypeStruct((d, v), jnp.float32)}
    params = placed(params, sharding)
    state = placed(jax.eval_shape(tx.init, params), sharding)
    hidden, error = (
        jax.ShapeDtypeStruct((tokens, n), jnp.bfloat16, sharding=sharding)
        for n in (d, v)
    )
    jitted = jax.jit(step, donate_argnums=(0, 1))
    return jitted.lower(params, state, hidden, error).compile()


def test_statistics_of_a_head_are_taken_where_its_gradient_is_made() -> None:
    """With clipping: the epilogue of the matrix product takes both sums."""
    ember = with_ember(optax.adamw(1e-3), vocab_axis=1)
    steps = compile_head(ember), compile_head(clip(optax.sgd(1e-2)))
    accessed, floor = (step.cost_analysis()["bytes accessed"] for step in steps)
    assert accessed <= 1.01 * floor
    peak, lowest = (s.memory_analysis().peak_memory_in_bytes for s in steps)
    assert peak <= lowest + 0.01 * 4 * 131072 * 4096


@pytest.mark.nightly
def test_a_training_step_peaks_where_sgd_does() -> None:
    case: dict[str, Any] = {"dtype": jnp.bfloat16, "tied": True}
    shape = (131072, 2048)
    body = optax.adamw(1e-3)
    sgd = optax.multi_transform(
        {"table": optax.sgd(1e-2), "body": body}, ember_optax.label_token_tables
    )
    ember, floor = (
        compile_training_step(tx, shape=shape, sharding=chip("v5p"), **case)
        .memory_analysis()
        .peak_memory_in_bytes
        for tx in (with_ember(body), clip(sgd))
    )
    assert ember <= floor + 0.01 * 2 * shape[0] * shape[1]
