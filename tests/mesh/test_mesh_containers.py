"""Sharded tables in the containers of Flax, and inside shard_map."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from tests.hundred_steps import (
    assert_replicated,
    table_moments,
)
from tests.mesh.test_mesh import (
    IDS,
    MODES,
    TABLES,
    LanguageModel,
    make_mesh,
    make_tx,
    nnx_step,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_nnx_optimizer_with_sharding_metadata(mode: AxisType) -> None:
    mesh = make_mesh(mode)
    with jax.set_mesh(mesh):
        model = LanguageModel(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, make_tx(), wrt=nnx.Param)
        assert_replicated(table_moments(nnx.state(optimizer)), mesh)
        ids = jax.device_put(IDS, NamedSharding(mesh, P()))
        losses = [nnx_step(model, optimizer, ids) for _ in range(3)]
        assert losses[0] > losses[1] > losses[2]
        assert_replicated(table_moments(nnx.state(optimizer)), mesh)
    if mode == AxisType.Explicit:  # with Auto axes XLA may place parameters anew
        assert jax.typeof(model.embed[...]).sharding.spec == P("x", None)
        assert jax.typeof(model.lm_head[...]).sharding.spec == P(None, "x")


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        x = nn.Embed(
            64, 16, embedding_init=nn.with_partitioning(init, ("x", None)), name="embed"
        )(ids)
        kernel_init = nn.with_partitioning(init, (None, "x"))
        return nn.Dense(64, use_bias=False, kernel_init=kernel_init, name="lm_head")(x)


def test_boxed_train_state_has_valid_specs() -> None:
    mesh = make_mesh(AxisType.Auto)

    def create() -> TrainState:
        model = LinenModel()
        params = model.init(jax.random.key(0), IDS)["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=make_tx())

    def step(state: TrainState) -> TrainState:
        def loss(params: Any) -> jax.Array:
            logits = state.apply_fn({"params": params}, IDS[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, IDS[:, 1:]
            ).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    with jax.set_mesh(mesh):
        specs = nn.get_partition_spec(jax.eval_shape(create))
        assert all(spec == P() for spec in table_moments(specs.opt_state))
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        state = jax.jit(create, out_shardings=shardings)()
        state = jax.jit(step, out_shardings=shardings)(state)
    assert_replicated(table_moments(state.opt_state), mesh)
    embedding = state.params["embed"]["embedding"].value
    assert embedding.sharding.spec == P("x", None)


@pytest.mark.parametrize(
    "tx", [ember_optax.ember(1e-2), make_tx()], ids=["alone", "multi_transform"]
)
def test_map_params_gives_a_usable_sharding_tree(tx: Any) -> None:
    mesh = make_mesh(AxisType.Auto)
    params = {"embed": {"embedding": jnp.ones((64, 16))}, "mid": jnp.ones((16, 32))}
    specs = {"embed": {"embedding": P("x", None)}, "mid": P(None, "y")}
    state = jax.eval_shape(tx.init, params)
    state_specs = optax.tree.map_params(
        tx,
        lambda _, spec: spec,
        state,
        specs,
        transform_non_params=lambda _: P(),
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    assert_replicated(table_moments(state), mesh)
    for adam in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")):
        if hasattr(adam, "mu"):
            assert adam.mu["mid"].sharding.spec == P(None, "y")


def ten_steps(tx: Any, tables: Any) -> Any:
    state = tx.init(tables)
    for seed in range(10):
        grads = jax.tree.map(lambda x, seed=seed: jnp.sin(9 * x + seed), tables)
        updates, state = tx.update(grads, state, tables)
        tables = optax.apply_updates(tables, updates)
    return tables


@pytest.mark.parametrize("column_mean", ["all", "active"])
@pytest.mark.parametrize("names", [("x", None), (None, "y"), ("x", "y")], ids=str)
def test_inside_shard_map_statistics_are_those_of_all_shards(
    names: Any, column_mean: Any
) -> None:
    tables = {"embed": TABLES["embed"], "other": jnp.cos(TABLES["embed"])}
    options = {"vocab_axis": 0, "column_mean": column_mean}
    tx = ember_optax.ember(1e-2, **options, axis_names=names)
    sharded_steps = jax.shard_map(
        lambda tables: ten_steps(tx, tables),
        mesh=make_mesh(AxisType.Auto),
        in_specs=P(*names),
        out_specs=P(*names),
    )
    expected = ten_steps(ember_optax.ember(1e-2, **options), tables)
    chex.assert_trees_all_close(
        jax.jit(sharded_steps)(tables), expected, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("spec", [P("x", "y"), P(("x", "y"), None)])
def test_inside_shard_map_over_some_axes_the_others_are_left_to_xla(
    mode: AxisType, spec: P
) -> None:
    mesh, table = make_mesh(mode), TABLES["embed"]
    tx = ember_optax.ember(
        1e-2, vocab_axis=0, axis_names=("x", None), row_state="sharded"
    )
    sharded_steps = jax.shard_map(
        lambda table: ten_steps(tx, table),
        mesh=mesh,
        in_specs=P("x"),
        out_specs=P("x"),
        axis_names={"x"},
    )
    result = jax.jit(sharded_steps)(jax.device_put(table, NamedSharding(mesh, spec)))
    chex.assert_trees_all_close(
        result, ten_steps(ember_optax.ember(1e-2), table), rtol=1e-6, atol=1e-6
    )


def test_inside_vmap_with_a_name() -> None:
    tx = ember_optax.ember(1e-2, vocab_axis=0, axis_names=("shard", None))
    shards = TABLES["embed"].reshape(4, 16, 16)
    result = jax.vmap(lambda x: ten_steps(tx, [x])[0], axis_name="shard")(shards)
    (expected,) = ten_steps(ember_optax.ember(1e-2), [TABLES["embed"]])
    chex.assert_trees_all_close(
        result.reshape(expected.shape), expected, rtol=1e-6, atol=1e-6
    )


def test_a_shard_does_not_tell_which_axis_holds_the_tokens() -> None:
    with pytest.raises(ValueError, match="vocab_axis"):
        ember_optax.ember(1e-2, axis_names=("x", None))
