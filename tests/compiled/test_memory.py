"""What the compiler says that a step takes: V + D numbers and no V x D temporary.

Nothing is allocated here and nothing is timed: a step on one table of GPT-2's size is
compiled from shapes, with the buffers of parameters and state donated.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from benchmarks.step.compiling import bytes_of
from benchmarks.step.training import compile_training_step

# Optax divides floats by integers, in Adam and in its schedules.
pytestmark = pytest.mark.usefixtures("standard_promotion")

JAX_0_11 = jax.__version_info__ >= (0, 11)
V, D = 50304, 768
SHAPES = [(V, D), (256128, 2048)]
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, 100)


def beside_a_body(
    table: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    return optax.multi_transform(
        {"table": table, "body": optax.adamw(1e-3)}, {"embed": "table", "norm": "body"}
    )


OPTIMIZERS = {
    "plain": ember_optax.ember(1e-2),
    "active": ember_optax.ember(1e-2, column_mean="active"),
    "two_tables": ember_optax.ember(1e-2),
    "routed": beside_a_body(ember_optax.ember(1e-2)),
    "decayed": beside_a_body(ember_optax.ember(SCHEDULE, weight_decay=0.1)),
}

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
both_dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def make_params(
    name: str, dtype: Any, v: int = V, d: int = D
) -> dict[str, jax.ShapeDtypeStruct]:
    shapes: dict[str, tuple[int, ...]] = {"embed": (v, d)}
    if name == "two_tables":
        shapes["head"] = (d, v)
    if name in ("routed", "decayed"):
        shapes["norm"] = (d,)
    return {k: jax.ShapeDtypeStruct(shape, dtype) for k, shape in shapes.items()}


def make_step(tx: optax.GradientTransformation) -> Any:
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def compile_step(tx: optax.GradientTransformation, params: Any) -> Any:
    state = jax.eval_shape(tx.init, params)
    return make_step(tx).lower(params, state, params).compile()


def traffic(compiled: Any, params: Any) -> float:
    """Bytes that a step reads and writes, in units of the parameters."""
    return compiled.cost_analysis()["bytes accessed"] / bytes_of(params)


@pytest.mark.parametrize(("v", "d"), SHAPES)
@both_dtypes
@every_optimizer
def test_no_temporary_of_the_size_of_a_table(
    name: str, dtype: Any, v: int, d: int
) -> None:
    params = make_params(name, dtype, v, d)
    compiled = compile_step(OPTIMIZERS[name], params)
    # Sums as large as the state, and scalars.
    bound = (2 if name == "two_tables" else 1) * 4 * (v + d) + 1e4
    if name == "active":
        # XLA:CPU stores which rows have a gradient, an int32 for each, and their number
        # in every 32 rows, before it has the number in all.
        bound += 4 * v + 4 * v / 32
    assert compiled.memory_analysis().temp_size_in_bytes < bound
    # Two passes for the statistics; then the gradient, the table, the new table.
    assert traffic(compiled, params) <= 5.05


def test_adam_takes_twice_the_traffic() -> None:
    # So the numbers above can tell one optimizer from another.
    params = make_params("plain", jnp.float32)
    assert traffic(compile_step(optax.adam(1e-2), params), params) >= 9


def memory_of_training(name: str, **case: Any) -> int:
    """Bytes of a whole training step on CPU: its arguments and its temporaries."""
    compiled = compile_training_step(name, shape=(V, D), **case)
    analysis = compiled.memory_analysis()
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes


@pytest.mark.parametrize("tied", [False, True])
def test_a_training_step_needs_the_memory_of_sgd(tied: bool) -> None:
    case = {"tied": tied, "clip": False}
    assert memory_of_training("Ember", **case) <= 1.02 * memory_of_training(
        "SGD", **case
    )


@both_dtypes
@every_optimizer
def test_clipping_is_for_nothing(name: str, dtype: Any) -> None:
    params = make_params(name, dtype)
    tx = ember_optax.clipped(OPTIMIZERS[name], 1.0)
    compiled = compile_step(tx, params)
    assert traffic(compiled, params) <= 5.1
    assert compiled.memory_analysis().temp_size_in_bytes <= 1.3e6
    # Optax's clipping of SGD, at its peak.
    sgd = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-2))
    peak, floor = (
        c.memory_analysis().peak_memory_in_bytes
        for c in (compiled, compile_step(sgd, params))
    )
    state = bytes_of(jax.eval_shape(tx.init, params))
    assert peak <= floor + state + 0.01 * bytes_of(params)


# In bfloat16 it is 17 with jax 0.10, and 12 from jax 0.11 on.
@pytest.mark.parametrize(("dtype", "least"), [(jnp.float32, 8), (jnp.bfloat16, 12)])
def test_clipping_by_optax_stores_a_table(dtype: Any, least: int) -> None:
    # So the numbers above are not what XLA would do anyway.
    params = make_params("plain", dtype)
    chain = optax.chain(optax.clip_by_global_norm(1.0), OPTIMIZERS["plain"])
    compiled = compile_step(chain, params)
    assert traffic(compiled, params) >= least
    assert compiled.memory_analysis().temp_size_in_bytes >= bytes_of(params)


@pytest.mark.parametrize(
    ("tied", "dtype", "stored"),
    [
        (False, jnp.float32, 0),
        (True, jnp.float32, 0),
        # XLA:CPU multiplies in float32. Ember reads the rounded product again, which is
        # therefore stored beside the other; SGD does not. From jax 0.11 on that is so
        # of the sum of both gradients of a tied table, and no longer of a head.
        (True, jnp.bfloat16, int(JAX_0_11)),
        (False, jnp.bfloat16, int(not JAX_0_11)),
    ],
)
def test_a_training_step_with_clipping_needs_the_memory_of_sgd(
    tied: bool, dtype: Any, stored: int
) -> None:
    case = {"tied": tied, "dtype": dtype}
    table_bytes = V * D * jnp.dtype(dtype).itemsize
    sgd = memory_of_training("SGD", **case)
    allowed = sgd + (stored + 0.01) * table_bytes
    assert memory_of_training("Ember", **case) <= allowed
    assert memory_of_training("Adam", **case) > sgd + 1.9 * table_bytes


@both_dtypes
def test_state_is_one_number_for_each_row_and_column(dtype: Any) -> None:
    params = make_params("plain", dtype)
    state = jax.eval_shape(ember_optax.scale_by_ember().init, params)
    assert bytes_of(state.tables) == 4 * (V + D)
    assert bytes_of(state) == 4 * (V + D) + 4 + 8  # count, product of decays


def test_nothing_else_of_a_routed_state_grows_with_the_table() -> None:
    params = make_params("decayed", jnp.float32)
    state = jax.eval_shape(OPTIMIZERS["decayed"].init, params)
    adam = 2 * 4 * D  # of the norm
    counts = 3 * 4  # of Ember, of its schedule and of Adam
    product = 2 * 4  # of all decays
    assert bytes_of(state) == 4 * (V + D) + adam + counts + product


@both_dtypes
@every_optimizer
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
