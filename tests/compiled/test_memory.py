"""Memory of a compiled step on CPU: V + D numbers of state and no V x D temporary.

Nothing is allocated and nothing is timed: a step on tables of GPT-2's size is compiled
from shapes, with the buffers of parameters and state donated.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from tests.compiling import (
    SCHEDULE,
    bytes_of,
    clip,
    compile_step,
    compile_training_step,
    make_step,
)
from tests.marks import both_dtypes

# Optax divides floats by integers, in Adam and in its schedules.
pytestmark = pytest.mark.usefixtures("standard_promotion")

JAX_0_11 = jax.__version_info__ >= (0, 11)
V, D = 50304, 768


def with_ember(max_norm: float | None = 1.0, **options: Any) -> Any:
    return ember_optax.with_ember(
        optax.adamw(1e-3),
        embed_learning_rate=SCHEDULE,
        head_learning_rate=1e-2,
        max_norm=max_norm,
        labels={"embed": "embed", "head": "head", "norm": "body"},
        **options,
    )


OPTIMIZERS = {
    "alone": ember_optax.ember(1e-2),
    "routed": optax.multi_transform(
        {"table": ember_optax.ember(SCHEDULE), "body": optax.adamw(1e-3)},
        {"embed": "table", "norm": "body"},
    ),
    "with_ember": with_ember(max_norm=None),
    "clipped": with_ember(),
    "clipped, two tables": with_ember(),
    "clipped, decayed": with_ember(weight_decay=0.1),
}


def make_params(
    name: str, dtype: Any, v: int = V, d: int = D
) -> dict[str, jax.ShapeDtypeStruct]:
    shapes: dict[str, tuple[int, ...]] = {"embed": (v, d)}
    if "two tables" in name:
        shapes["head"] = (d, v)
    if name != "alone":
        shapes["norm"] = (d,)
    return {k: jax.ShapeDtypeStruct(shape, dtype) for k, shape in shapes.items()}


def traffic(compiled: Any, params: Any) -> float:
    """Bytes that a step reads and writes, in units of the parameters."""
    return compiled.cost_analysis()["bytes accessed"] / bytes_of(params)


@functools.cache
def peak_of_clipped_sgd(**params: jax.ShapeDtypeStruct) -> int:
    step = compile_step(clip(optax.sgd(1e-2)), params)
    return step.memory_analysis().peak_memory_in_bytes


@both_dtypes
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_temporary_of_the_size_of_a_table(name: str, dtype: Any) -> None:
    params, tx = make_params(name, dtype), OPTIMIZERS[name]
    compiled = compile_step(tx, params)
    memory = compiled.memory_analysis()
    # Room for the means and the roots of a table, never for a table.
    n_tables = 2 if "two tables" in name else 1
    bound = 2 * n_tables * 4 * (V + D) + 1e4
    assert memory.temp_size_in_bytes < bound
    # Two passes for the statistics; then the gradient, the table, the new table.
    assert traffic(compiled, params) <= 5.1
    if name.startswith("clipped"):  # peaks where clipped SGD does
        state = bytes_of(jax.eval_shape(tx.init, params))
        allowed = peak_of_clipped_sgd(**params) + state + 0.01 * bytes_of(params)
        assert memory.peak_memory_in_bytes <= allowed


def test_adam_takes_twice_the_traffic() -> None:
    # The count tells one optimizer from another.
    params = make_params("alone", jnp.float32)
    assert traffic(compile_step(optax.adam(1e-2), params), params) >= 9


def memory_of_training(tx: optax.GradientTransformation, **case: Any) -> int:
    """Bytes of a whole training step on CPU: its arguments and its temporaries."""
    analysis = compile_training_step(tx, shape=(V, D), **case).memory_analysis()
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes


@pytest.mark.parametrize(
    ("tied", "dtype", "stored"),
    [
        (False, jnp.float32, 0),
        # XLA:CPU multiplies in float32 and may store the rounded product, which Ember
        # reads again, next to the other; SGD does not read it again. Up to jax 0.10
        # that concerns the head's product, later the sum of a tied table's gradients.
        (True, jnp.bfloat16, int(JAX_0_11)),
        (False, jnp.bfloat16, int(not JAX_0_11)),
    ],
)
def test_a_training_step_needs_the_memory_of_sgd(
    tied: bool, dtype: Any, stored: int
) -> None:
    case = {"tied": tied, "dtype": dtype}
    body = optax.adamw(1e-3)
    ember = ember_optax.with_ember(
        body, embed_learning_rate=1e-2, head_learning_rate=1e-2, max_norm=1.0
    )

    def clipped(table: optax.GradientTransformation) -> optax.GradientTransformation:
        routed = optax.multi_transform(
            {"table": table, "body": body}, ember_optax.label_token_tables
        )
        return clip(routed)

    table_bytes = V * D * jnp.dtype(dtype).itemsize
    sgd = memory_of_training(clipped(optax.sgd(1e-2)), **case)
    allowed = sgd + (stored + 0.01) * table_bytes
    assert memory_of_training(ember, **case) <= allowed
    adam = memory_of_training(clipped(optax.adam(1e-3)), **case)
    assert adam > sgd + 1.9 * table_bytes


@both_dtypes
def test_state_is_one_number_for_each_row_and_column(dtype: Any) -> None:
    params = make_params("clipped, two tables", dtype)
    state = jax.eval_shape(OPTIMIZERS["clipped"].init, params)
    assert bytes_of(state.ember.tables) == 2 * 4 * (V + D)
    scalars = 4 + 4  # count, bias correction
    assert bytes_of(state.ember) == 2 * 4 * (V + D) + scalars
    adam = 2 * D * jnp.dtype(dtype).itemsize + 4  # of the norm, and its count
    assert bytes_of(state.body) == adam


@both_dtypes
@pytest.mark.parametrize("name", ["routed", "clipped, decayed"])
def test_the_second_step_is_not_compiled_again(
    name: str, dtype: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tx = OPTIMIZERS[name]
    shapes = make_params(name, dtype, v=24, d=8)
    params = {k: jnp.ones(x.shape, dtype) for k, x in shapes.items()}
    grads = jax.tree.map(np.ones_like, params)
    step, state = make_step(tx), tx.init(params)
    with jax.log_compiles():
        params, state = step(params, state, grads)
        assert "Finished XLA compilation" in caplog.text
        caplog.clear()
        params, state = step(params, state, grads)
    assert not caplog.records
    chex.assert_tree_all_finite(params)
