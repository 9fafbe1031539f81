"""The budgets of test_memory.py by the real GPU compiler, for an H100.

No GPU is needed: `make test-gpu-compiler` installs the compiler and runs this file.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import ember_optax
from benchmarks.step import gpu
from benchmarks.step.compiling import bytes_of, clipped, compile_step
from benchmarks.step.traffic import bytes_accessed

if not gpu.is_installed():
    pytest.skip("the GPU compiler is not installed", allow_module_level=True)

# Optax divides floats by integers, in Adam and in its schedules.
pytestmark = pytest.mark.usefixtures("standard_promotion")

SHAPE = (131072, 4096)
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 100)
EMBERS = {
    "plain": ember_optax.ember(1e-2),
    "active": ember_optax.ember(1e-2, column_mean="active"),
    "decayed": ember_optax.ember(
        SCHEDULE, ember_optax.adafactor_decay(), weight_decay=0.1
    ),
}
both_dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def make_table(dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(SHAPE, dtype, sharding=gpu.h100())


@both_dtypes
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("name", EMBERS)
def test_three_passes_and_no_temporary(name: str, clip: bool, dtype: Any) -> None:
    table, tx = make_table(dtype), EMBERS[name]
    step = compile_step(clipped("Ember", tx) if clip else tx, table)
    # For the sums of the rows, for those of the columns, for the update.
    assert bytes_accessed(step.as_text()) <= 5.1 * bytes_of(table)
    memory = step.memory_analysis()
    assert memory.temp_size_in_bytes <= 0.01 * bytes_of(table)
    sgd = optax.sgd(1e-2)
    floor = compile_step(clipped("SGD", sgd) if clip else sgd, table)
    peak = floor.memory_analysis().peak_memory_in_bytes + 0.01 * bytes_of(table)
    assert memory.peak_memory_in_bytes <= peak


def test_the_count_tells_optimizers_apart() -> None:
    table = make_table(jnp.float32)
    counts = {
        7: optax.adam(1e-3),
        8: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
        3: optax.sgd(1e-2),
        4: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-2)),
    }
    for expected, tx in counts.items():
        accessed = bytes_accessed(compile_step(tx, table).as_text())
        assert accessed == pytest.approx(expected * bytes_of(table), rel=0.01)


def test_clipping_by_optax_reads_the_gradient_again() -> None:
    table = make_table(jnp.float32)
    chain = optax.chain(optax.clip_by_global_norm(1.0), EMBERS["plain"])
    accessed = bytes_accessed(compile_step(chain, table).as_text())
    assert accessed == pytest.approx(6 * bytes_of(table), rel=0.01)


@both_dtypes
def test_stochastic_rounding_stores_no_table(dtype: Any) -> None:
    table = make_table(dtype)
    tx = optax.chain(EMBERS["plain"], ember_optax.stochastic_rounding(0))
    step = compile_step(ember_optax.clipped(tx, 1.0), table)
    assert bytes_accessed(step.as_text()) <= 5.1 * bytes_of(table)
    assert step.memory_analysis().temp_size_in_bytes <= 0.01 * bytes_of(table)
