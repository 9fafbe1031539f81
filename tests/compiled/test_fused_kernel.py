"""The kernel of the fused step: against plain JAX, and by the TPU compiler."""

import functools
import importlib.util
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from benchmarks.fused.run import compile_fused
from benchmarks.step.tpu import chip
from ember_optax.experimental import fused
from ember_optax.experimental.fused import FusedState, _kernel
from examples.lm import topology
from examples.lm.hlo import collectives
from tests.compiled.test_fused import (
    LIMIT,
    SHAPES,
    assert_equal,
    make_grads,
    make_operands,
)
from tests.compiling import all_reduce


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("axis", [0, 1])
def test_kernel_is_the_plain_step(
    shape: tuple[int, int], dtype: Any, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = make_operands(shape, dtype, axis)
    plain = jax.jit(functools.partial(_kernel.plain_step, axis=axis, limit=LIMIT))(
        *operands
    )
    # Reads NaN outside of the arrays.
    interpreted = functools.partial(pl.pallas_call, interpret=True)
    monkeypatch.setattr(pl, "pallas_call", interpreted)
    kernel = jax.jit(functools.partial(_kernel.kernel_step, axis=axis, limit=LIMIT))(
        *operands
    )
    assert_equal(kernel, plain)


def test_kernel_on_the_two_cores_of_a_simulated_chip() -> None:
    # Three blocks: the second core has nothing to do in its last step.
    operands = make_operands((3072, 3), jnp.float32, axis=0)
    plain = _kernel.plain_step(*operands, axis=0, limit=LIMIT)
    simulated = pltpu.InterpretParams(num_cores_or_threads=2)
    with pltpu.force_tpu_interpret_mode(simulated):
        kernel = jax.jit(functools.partial(_kernel.kernel_step, axis=0, limit=LIMIT))(
            *operands
        )
    assert_equal(kernel, plain)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_of_the_kernel_pass_once(
    dtype: Any, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # XLA counts for a kernel what it declares; this counts what its grid moves.
    moved = 0

    def pallas_call(_: Any, *, grid: Any, in_specs: Any, out_specs: Any, **rest: Any):
        def call(*operands: jax.Array) -> list[jax.Array]:
            outputs = [jnp.zeros(x.shape, x.dtype) for x in rest["out_shape"]]
            specs = [*in_specs, *out_specs]
            for spec, x in zip(specs, [*operands, *outputs], strict=True):
                if spec.block_shape is None:
                    continue  # the numbers
                size = math.prod(n or 1 for n in spec.block_shape)
                steps = itertools.product(*map(range, grid))
                indices = [tuple(map(int, spec.index_map(*at))) for at in steps]
                nonlocal moved
                moved += len(list(itertools.groupby(indices))) * size * x.itemsize
            declared.append(rest["cost_estimate"].bytes_accessed)
            return outputs

        return call

    declared: list[int] = []
    monkeypatch.setattr(pl, "pallas_call", pallas_call)
    operands = make_operands((5 * 1024, 256), dtype, axis)
    _kernel.kernel_step(*operands, axis=axis, limit=LIMIT)
    table = operands[0]
    state_bytes = 2 * 4 * sum(table.shape)
    assert 3 * table.nbytes < moved <= 3 * table.nbytes + state_bytes + 4 * 2 * 256
    assert abs(declared[0] - moved) <= 4 * 256 + 16


def make_state(**shapes: Any) -> FusedState:
    given = {"row": (8,), "col": (4,), "count": ()} | shapes
    return FusedState(**{name: jnp.zeros(shape) for name, shape in given.items()})


TABLE = jnp.ones((8, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": jnp.ones(8)}, "at least one more"),
        (
            {"table": jnp.ones((8, 2, 2))},
            r"\(8, 2, 2\), but .* two axes",
        ),
        ({"table": jnp.ones((8, 4), jnp.int32)}, "floating-point"),
        ({"vocab_axis": 2}, "vocab_axis is 2"),
        ({"vocab_axis": 1}, "along axis 1"),
        ({"vocab_axis": 0.5}, "must be an int"),
        ({"state": make_state(row=(9,))}, r"row of \(9,\)"),
        ({"state": make_state(col=(5,))}, r"col of \(5,\)"),
        ({"state": (1, 2, 3)}, "FusedState is needed"),
        ({"grad": jnp.ones((8, 5))}, r"float32\[8, 5\], but a table of \[8, 4\]"),
        ({"grad": jnp.ones((8, 4), jnp.int32)}, "int32"),
        ({"b2": 1.0}, "b2 is 1.0"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    given = {"table": TABLE, "state": make_state(), "grad": TABLE} | arguments
    with pytest.raises(ValueError, match=message):
        fused.apply(**given, learning_rate=0.1)


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_mesh_needs_a_shard_map(mode: AxisType) -> None:
    with (
        jax.set_mesh(jax.make_mesh((8,), ("x",), (mode,))),
        pytest.raises(ValueError, match=r"inside a jax\.shard_map"),
    ):
        fused.apply(TABLE, make_state(), TABLE, learning_rate=0.1)


def step_on(mesh: jax.sharding.Mesh, axis_name: str | tuple[str, ...]) -> Any:
    """A step of one device's rows, and how its arguments are sharded."""
    specs = (P(axis_name), FusedState(P(axis_name), P(), P()), P(axis_name))
    step = functools.partial(fused.apply, learning_rate=0.1, axis_name=axis_name)
    sharded = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs[:2])
    return sharded, jax.tree.map(functools.partial(jax.NamedSharding, mesh), specs)


def test_shards_of_rows_take_the_step_of_the_table() -> None:
    grads = jnp.asarray(make_grads((40, 8), 3))
    table = jnp.ones((40, 8))
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    sharded_step, shardings = step_on(mesh, ("x", "y"))
    state = fused.init(table)
    sharded = jax.device_put((table, state), shardings[:2])
    for grad in grads:
        table, state = fused.apply(table, state, grad, learning_rate=0.1)
        sharded = jax.jit(sharded_step)(*sharded, jax.device_put(grad, shardings[2]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        sharded,
        (table, state),
    )


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jax[tpu]'",
)


ON_CHIPS = [
    *((family, (256128, 2048), 0) for family in ("v5e", "v5p", "tpu7x")),
    ("v5p", (2048, 256128), 1),
    ("v5e", (50257, 768), 0),
]


@needs_libtpu
@pytest.mark.parametrize(("family", "shape", "axis"), ON_CHIPS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tpu_compiler_finds_the_traffic_of_sgd(
    family: str, shape: tuple[int, int], axis: int, dtype: Any
) -> None:
    compiled = compile_fused(shape, dtype, chip(family), vocab_axis=axis)
    assert compiled.as_text().count("tpu_custom_call") == 1
    table_bytes = math.prod(shape) * dtype.dtype.itemsize
    assert compiled.cost_analysis()["bytes accessed"] <= 3.05 * table_bytes
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 10**6 + 4 * sum(shape)
    assert memory.alias_size_in_bytes > table_bytes


@needs_libtpu
@pytest.mark.parametrize("name", ["v5p:2x2x1", "v5e:2x2"])
def test_tpu_compiler_adds_up_columns_only(name: str) -> None:
    mesh = jax.make_mesh((4,), ("x",), devices=topology.devices(name))
    step, shardings = step_on(mesh, "x")
    table = jax.ShapeDtypeStruct((131072, 2048), jnp.float32)
    operands = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        (table, jax.eval_shape(fused.init, table), table),
        shardings,
    )
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*operands).compile()
    assert collectives(compiled.as_text()) == [all_reduce(2048)]
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 10**6
