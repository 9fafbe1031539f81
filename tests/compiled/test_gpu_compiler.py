"""The bounds of test_memory.py by the real GPU compiler, for an H100.

No GPU is needed: `make test-gpu-compiler` installs the compiler and runs this file.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import ember_optax
from tests.compiling import (
    SCHEDULE,
    bytes_of,
    clip,
    compile_step,
    h100,
    has_gpu_compiler,
)
from tests.hlo import bytes_accessed
from tests.marks import both_dtypes

if not has_gpu_compiler():
    pytest.skip("the GPU compiler is not installed", allow_module_level=True)

# Optax divides floats by integers, in Adam and in its schedules.
pytestmark = pytest.mark.usefixtures("no_cache", "standard_promotion")

SHAPE = (131072, 4096)


def with_ember(max_norm: float | None, **options: Any) -> Any:
    return ember_optax.with_ember(
        optax.adamw(1e-3), head_learning_rate=SCHEDULE, max_norm=max_norm, **options
    )


EMBERS = {
    "alone": ember_optax.ember(1e-2),
    "not clipped": with_ember(None),
    "clipped": with_ember(1.0),
    "decayed": with_ember(1.0, weight_decay=0.1),
    "rounded": optax.chain(with_ember(1.0), ember_optax.stochastic_rounding(0)),
}


def make_table(dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    return {"embed": jax.ShapeDtypeStruct(SHAPE, dtype, sharding=h100())}


@both_dtypes
@pytest.mark.parametrize("name", EMBERS)
def test_three_passes_and_no_temporary(name: str, dtype: Any) -> None:
    table = make_table(dtype)
    step = compile_step(EMBERS[name], table)
    # For the sums of the rows, for those of the columns, for the update.
    assert bytes_accessed(step.as_text()) <= 5.1 * bytes_of(table)
    memory = step.memory_analysis()
    assert memory.temp_size_in_bytes <= 0.01 * bytes_of(table)
    sgd = optax.sgd(1e-2)
    if name not in ("alone", "not clipped"):
        sgd = clip(sgd)
    floor = compile_step(sgd, table).memory_analysis().peak_memory_in_bytes
    assert memory.peak_memory_in_bytes <= floor + 0.01 * bytes_of(table)


def test_the_count_tells_optimizers_apart() -> None:
    table = make_table(jnp.float32)
    counts = {
        7: optax.adam(1e-3),
        8: clip(optax.adam(1e-3)),
        3: optax.sgd(1e-2),
        4: clip(optax.sgd(1e-2)),
    }
    for expected, tx in counts.items():
        accessed = bytes_accessed(compile_step(tx, table).as_text())
        assert accessed == pytest.approx(expected * bytes_of(table), rel=0.01)
