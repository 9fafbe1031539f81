"""From Adam to Ember and back: containers, dtypes, meshes, and what is refused."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from tests.unit.test_convert import (
    SHAPES,
    STEPS,
    adam_run,
    adamw,
    chains,
    ember_part,
    ember_run,
    make_grads,
    make_params,
    parts,
    train,
    with_ember,
)

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")

# Containers, dtypes, transformations and meshes.


def test_bfloat16_moments_are_averaged_in_float32() -> None:
    params = {"embed": jnp.ones((512, 4), "bfloat16")}
    tx = ember_optax.ember(1e-2)
    adam = optax.adamw(1e-2)
    state = adam.init(params)
    nu = jnp.arange(512 * 4).reshape(512, 4).astype("bfloat16")
    state = (state[0]._replace(nu={"embed": nu}, count=jnp.int32(5)), *state[1:])
    part = ember_part(ember_optax.from_adam(state, tx, params))
    row, col = part.tables["embed"]
    assert row.dtype == col.dtype == jnp.float32
    np.testing.assert_allclose(row, np.asarray(nu, np.float64).mean(1), rtol=1e-6)
    np.testing.assert_allclose(col, np.asarray(nu, np.float64).mean(0), rtol=1e-6)
    back = ember_optax.to_adam((part, *tx.init(params)[1:]), adam, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, adam.init(params))


def test_the_dtype_of_moments_is_that_of_tx() -> None:
    params, adam_state = adam_run()
    tx = optax.multi_transform(
        {
            "table": ember_optax.ember(1.0),
            "body": optax.adamw(1.0, mu_dtype="bfloat16"),
        },
        ember_optax.label_token_tables,
    )
    state = ember_optax.from_adam(adam_state, tx, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))


def test_linen_boxes() -> None:
    params = {
        "embed": nn.LogicallyPartitioned(jnp.ones((12, 5)), ("vocab", "embed")),
        "mlp": {"kernel": nn.LogicallyPartitioned(jnp.ones((5, 6)), ("embed", "mlp"))},
    }
    tx = with_ember()
    _, adam_state = train(adamw(), params)
    state = ember_optax.from_adam(adam_state, tx, params)
    chex.assert_trees_all_equal_structs(state, tx.init(params))
    back = ember_optax.to_adam(state, adamw(), params)
    chex.assert_trees_all_equal_structs(back, adam_state)
    train(tx, params, 1, state)


# Flax called it so up to 0.12.6.
as_pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure


class Model(nnx.Module):
    def __init__(self) -> None:
        self.embed = nnx.Embed(12, 5, rngs=nnx.Rngs(0))
        self.mlp = nnx.Linear(5, 6, rngs=nnx.Rngs(0))


def test_nnx_optimizer() -> None:
    model = Model()
    old = nnx.Optimizer(model, adamw(), wrt=nnx.Param)
    for seed in range(STEPS):
        old.update(model, make_grads(seed, nnx.state(model, nnx.Param)))

    tx = with_ember()
    new = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params, adam_state = as_pure((nnx.state(model, nnx.Param), old.opt_state))
    state = ember_optax.from_adam(adam_state, tx, params)
    nnx.update(new.opt_state, nnx.state(state))

    part = ember_part(as_pure(new.opt_state))
    (adam,) = parts(as_pure(old.opt_state), optax.ScaleByAdamState)
    nu = np.asarray(adam.nu["embed"]["embedding"])
    np.testing.assert_allclose(
        part.tables["embed:embedding"].row, nu.mean(1), rtol=1e-6
    )
    new.update(model, make_grads(STEPS, nnx.state(model, nnx.Param)))
    assert ember_part(as_pure(new.opt_state)).count == STEPS + 1


def test_under_jit_and_eval_shape() -> None:
    params, adam_state = adam_run()
    tx = with_ember()
    move = partial(ember_optax.from_adam, tx=tx, params=params)
    chex.assert_trees_all_close(jax.jit(move)(adam_state), move(adam_state), rtol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(move, adam_state), tx.init(params)
    )


SPECS = {"embed": P("x", "y"), "lm_head": P("y", "x"), "mlp": {"kernel": P(None, "y")}}


@pytest.mark.parametrize("row_state", ["replicated", "sharded"])
@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(mode: AxisType, row_state: str) -> None:
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(mode,) * 2)
    params = {
        "embed": jnp.ones((12, 4)),
        "lm_head": jnp.ones((4, 12)),
        "mlp": {"kernel": jnp.ones((4, 6))},
    }
    _, here = train(adamw(), params)
    expected = ember_optax.from_adam(here, with_ember(), params)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    explicit = mode == AxisType.Explicit
    tx = with_ember(
        row_state=row_state, param_shardings=None if explicit else shardings
    )
    options = {"row_state": row_state}
    with jax.set_mesh(mesh):
        params = jax.device_put(params, shardings)
        there = ember_optax.opt_state_shardings(tx, params, shardings, **options)
        back_there = ember_optax.opt_state_shardings(adamw(), params, shardings)
        adam_state = jax.device_put(here, back_there)
        move = jax.jit(
            lambda state, params: ember_optax.from_adam(state, tx, params),
            out_shardings=None if explicit else there,
        )
        state = move(adam_state, params)
        assert _shardings(state) == _shardings(jax.device_put(state, there))
        chex.assert_trees_all_close(jax.device_get(state), expected, rtol=1e-6)

        move_back = jax.jit(
            lambda state, params: ember_optax.to_adam(state, adamw(), params),
            out_shardings=None if explicit else back_there,
        )
        back = move_back(state, params)
        assert _shardings(back) == _shardings(adam_state)
        chex.assert_trees_all_close(
            jax.device_get(back),
            ember_optax.to_adam(expected, adamw(), jax.device_get(params)),
            rtol=1e-5,
        )


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
def test_outside_of_jit_the_statistics_are_replicated(mode: AxisType) -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(mode,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P("x", None))
        params = {"embed": jax.device_put(jnp.ones((12, 5)), rows)}
        tx = ember_optax.ember(1e-2)
        state = ember_optax.from_adam(optax.adamw(1e-2).init(params), tx, params)
        row, col = ember_part(state).tables["embed"]
        assert row.sharding.is_fully_replicated
        assert col.sharding.is_fully_replicated
        assert len(row.sharding.device_set) == 4


def _shardings(tree: Any) -> list[Any]:
    """Shardings with specs in one notation."""
    return [
        (x.sharding.mesh.axis_names, P(*(*x.sharding.spec, *[None] * x.ndim)[: x.ndim]))
        for x in jax.tree.leaves(tree)
    ]


# What is refused.


def chained_twice() -> tuple[Any, Any]:
    tx = optax.chain(optax.adamw(1e-2), optax.scale_by_adam())
    return train(tx, make_params())[1], with_ember()


def of_another_model() -> tuple[Any, Any]:
    params = {**make_params(), "bigram_embed": jnp.ones((4, 3))}
    return train(adamw(), params)[1], with_ember()


def without_the_body() -> tuple[Any, Any]:
    return train(adamw(), {"embed": jnp.ones(SHAPES["embed"])})[1], with_ember()


def of_another_width() -> tuple[Any, Any]:
    params = {**make_params(), "embed": jnp.ones((12, 6))}
    return train(adamw(), params)[1], with_ember()


def with_another_body() -> tuple[Any, Any]:
    params = {**make_params(), "mlp": {"kernel": jnp.ones((5, 7))}}
    return train(adamw(), params)[1], with_ember()


def steps_that_differ() -> tuple[Any, Any]:
    old, new = chains("two groups")
    state = train(old, make_params())[1]
    counts = iter(range(10))

    def count(part: Any) -> Any:
        if not isinstance(part, optax.ScaleByScheduleState):
            return part
        return part._replace(count=jnp.int32(next(counts)))

    is_leaf = lambda x: isinstance(x, optax.ScaleByScheduleState)  # noqa: E731
    elsewhere = optax.chain(optax.clip_by_global_norm(1.0), new)
    return jax.tree.map(count, state, is_leaf=is_leaf), elsewhere


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda: ({"a": {"mu": 1.0}}, with_ember()), r"type dict with .* 'a/mu'"),
        (lambda: (ember_run()[1], adamw()), "all of them of"),
        (lambda: (adam_run()[1], adamw()), "all of them of Adam"),
        (chained_twice, "'embed' twice"),
        (of_another_model, "moments of 'bigram_embed', but tx trains only"),
        (without_the_body, "trains 'lm_head', 'mlp/kernel', .* moments of 'embed'"),
        (of_another_width, r"'embed' has the shape \(12, 6\), but its state"),
        (with_another_body, r"'mlp/kernel' with the shape \(5, 7\)"),
        (steps_that_differ, r"steps differ .*\(0 for .*, 1 for "),
    ],
)
def test_errors(case: Any, message: str) -> None:
    state, tx = case()
    with pytest.raises(ValueError, match=message):
        ember_optax.from_adam(state, tx, make_params())


def test_to_adam_needs_ember() -> None:
    params, state = adam_run()
    with pytest.raises(ValueError, match=r"given state .* all of them of Adam"):
        ember_optax.to_adam(state, adamw(), params)


@pytest.mark.parametrize("name", ["adam_b2", "ember_b2"])
def test_a_decay_out_of_range(name: str) -> None:
    params, state = adam_run()
    with pytest.raises(ValueError, match=r"b2 is 1\.0"):
        ember_optax.from_adam(state, with_ember(), params, **{name: 1.0})
