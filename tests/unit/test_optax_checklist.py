"""The checks that Optax makes of every optimizer (optax/contrib/_common_test.py).

Those of `optax.inject_hyperparams` and `optax.MultiSteps` are in test_composition.py.
Parameters of one axis are the body, which SGD trains.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax

LEARNING_RATE = 1e-2
OPTIMIZERS = {
    "ember": lambda: optax.multi_transform(
        {"table": ember_optax.ember(LEARNING_RATE), "body": optax.sgd(0.1)}, LABELS
    ),
    "with_ember": lambda: ember_optax.with_ember(
        optax.sgd(0.1), other_learning_rates={"bowl|valley": LEARNING_RATE}
    ),
}
LABELS = {"bowl": "table", "valley": "table", "bias": "body"}

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def make_tx(name: str) -> Any:
    return OPTIMIZERS[name]()


def make_params(dtype: Any = jnp.float32) -> dict[str, np.ndarray]:
    return {
        "bowl": np.array([[-1, 10, 1], [3, 2, -5]], dtype),
        "valley": np.array([[0, 0], [-1, 2], [2, 0.5]], dtype),
        "bias": np.array([-1, 10, 1], dtype),
    }


def make_optimum(dtype: Any = jnp.float32) -> dict[str, np.ndarray]:
    return {
        "bowl": np.array([[1, -1, 1], [3, -2, 4]], dtype),
        "valley": np.ones((3, 2), dtype),
        "bias": np.array([1, -1, 1], dtype),
    }


def loss(params: dict[str, jax.Array]) -> jax.Array:
    """A parabola for bowl and bias; each row of valley is a Rosenbrock problem."""
    optimum = make_optimum(params["bowl"].dtype)
    x, y = params["valley"].T
    return (
        jnp.sum((params["bowl"] - optimum["bowl"]) ** 2)
        + jnp.sum((params["bias"] - optimum["bias"]) ** 2)
        + jnp.sum((1 - x) ** 2 + 100 * (y - x**2) ** 2)
    )


def step(
    tx: optax.GradientTransformationExtraArgs, params: Any, state: Any, **extra: Any
) -> tuple[Any, Any]:
    updates, state = tx.update(jax.grad(loss)(params), state, params, **extra)
    return optax.apply_updates(params, updates), state


@every_optimizer
def test_extra_arguments_are_ignored_and_the_second_step_is_not_traced(
    name: str,
) -> None:
    tx = make_tx(name)
    chex.clear_trace_counter()  # chex counts by the name of the function

    @jax.jit
    @chex.assert_max_traces(n=1)
    def jitted(params: Any, state: Any) -> tuple[Any, Any]:
        return step(tx, params, state, unexpected=1)

    params, state = jitted(make_params(), tx.init(make_params()))
    jitted(params, state)


@every_optimizer
def test_convergence_on_parabola_and_rosenbrock(name: str) -> None:
    tx = make_tx(name)

    def scanned(carry: Any, _: None) -> tuple[Any, None]:
        return step(tx, *carry), None

    init = make_params(), tx.init(make_params())
    (params, _), _ = jax.jit(lambda init: jax.lax.scan(scanned, init, length=10_000))(
        init
    )
    chex.assert_trees_all_close(params, make_optimum(), rtol=3e-2, atol=3e-2)


@every_optimizer
def test_map_params_changes_no_statistics(name: str) -> None:
    tx = make_tx(name)
    state = tx.init(make_params())
    mapped = optax.tree.map_params(tx, lambda v: v, state)
    chex.assert_trees_all_equal(mapped, state)


@every_optimizer
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_updates_and_state_keep_shapes_and_dtypes_through_cond(
    name: str, dtype: Any
) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        tx, params = make_tx(name), make_params(dtype)

        @jax.jit
        def jitted(params: Any, state: Any, skip: jax.Array) -> tuple[Any, Any]:
            # It refuses branches that differ in a dtype.
            return jax.lax.cond(
                skip,
                lambda: (params, state),
                lambda: tx.update(jax.grad(loss)(params), state, params),
            )

        state = tx.init(params)
        for skip in (True, False):
            updates, new_state = jitted(params, state, jnp.array(skip))
            chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
