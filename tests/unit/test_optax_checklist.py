"""The checks that Optax makes of every optimizer (optax/contrib/_common_test.py).

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
DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


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


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (ember_optax.ember, {"learning_rate": 1e-2, "weight_decay": 0.1}),
        (ember_optax.scale_by_ember, {}),
    ],
)
def test_injected_hyperparameters_change_nothing(factory: Any, options: Any) -> None:
    plain = factory(**options)
    injected = optax.inject_hyperparams(factory)(**options)
    params = [-jnp.ones((2, 3)), jnp.ones((2, 5, 2))]
    grads = [jnp.ones((2, 3)), -jnp.ones((2, 5, 2))]
    state = jax.jit(plain.init)(params)
    injected_state = jax.jit(injected.init)(params)
    for _ in range(2):
        updates, state = jax.jit(plain.update)(grads, state, params)
        injected_updates, injected_state = jax.jit(injected.update)(
            grads, injected_state, params
        )
        # 1 - float32(0.999) differs from 0.001 by 1.3e-5 of it.
        chex.assert_trees_all_close(injected_updates, updates, rtol=1e-5)
        chex.assert_trees_all_close(injected_state.inner_state, state, rtol=2e-5)


@every_optimizer
@every_dtype
def test_updates_have_the_dtype_of_the_parameters(name: str, dtype: Any) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        tx, params = make_tx(name), make_params(dtype)
        grads = jax.jit(jax.grad(loss))(params)
        updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@pytest.mark.usefixtures("standard_promotion")  # MultiSteps divides by an integer
@every_optimizer
@every_dtype
def test_gradient_accumulation(name: str, dtype: Any) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        tx, params = optax.MultiSteps(make_tx(name), 4), make_params(dtype)
        grads = jax.jit(jax.grad(loss))(params)
        updates, _ = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))


@every_optimizer
@every_dtype
def test_state_keeps_shapes_and_dtypes_through_cond(name: str, dtype: Any) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        tx, params = make_tx(name), make_params(dtype)

        @jax.jit
        def jitted(params: Any, state: Any, skip: jax.Array) -> tuple[Any, Any]:
            return jax.lax.cond(
                skip, lambda: (params, state), lambda: step(tx, params, state)
            )

        state = tx.init(params)
        for skip in (True, False):
            new_params, new_state = jitted(params, state, jnp.array(skip))
            chex.assert_trees_all_equal_shapes_and_dtypes(new_params, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
