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
from tests.mesh.training import (
    MODES,
    assert_replicated,
    make_mesh,
    make_tables,
    table_moments,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")

TABLE = make_tables()["embed"]
IDS = jnp.arange(8 * 9).reshape(8, 9) % 64
every_mode = pytest.mark.parametrize("mode", MODES, ids=str)


def with_ember() -> optax.GradientTransformationExtraArgs:
    return ember_optax.with_ember(
        optax.adamw(1e-3), embed_learning_rate=1e-2, head_learning_rate=1e-2
    )


def multi_transform() -> optax.GradientTransformationExtraArgs:
    return optax.multi_transform(
        {"table": ember_optax.ember(1e-2), "body": optax.adamw(1e-3)},
        ember_optax.label_token_tables,
    )


every_optimizer = pytest.mark.parametrize(
    "make_tx", [with_ember, multi_transform], ids=lambda make: make.__name__
)


def cross_entropy(logits: jax.Array, ids: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean()


class NnxModel(nnx.Module):
    """A model that states the sharding of its lookup, which Explicit axes require."""

    def __init__(self, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.embed = nnx.Param(init(rngs.params(), (64, 16)), out_sharding=("x", None))
        self.lm_head = nnx.Param(
            init(rngs.params(), (16, 64)), out_sharding=(None, "x")
        )
        self.mid = nnx.Param(init(rngs.params(), (16, 16)), out_sharding=(None, "y"))

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed[...].at[ids].get(out_sharding=P())
        x = jnp.einsum("btd,de->bte", x, self.mid[...], out_sharding=P())
        return jnp.einsum("btd,dv->btv", x, self.lm_head[...], out_sharding=P())


@nnx.jit
def nnx_step(model: Any, optimizer: nnx.Optimizer, ids: jax.Array) -> jax.Array:
    def loss_fn(model: NnxModel) -> jax.Array:
        return cross_entropy(model(ids[:, :-1]), ids[:, 1:])

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


@every_mode
def test_nnx_optimizer_with_sharding_metadata(mode: AxisType) -> None:
    mesh = make_mesh(mode)
    with jax.set_mesh(mesh):
        model = NnxModel(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, with_ember(), wrt=nnx.Param)
        assert_replicated(table_moments(nnx.state(optimizer)), mesh)
        ids = jax.device_put(IDS, NamedSharding(mesh, P()))
        losses = [nnx_step(model, optimizer, ids) for _ in range(3)]
        assert losses[0] > losses[1] > losses[2]
        assert_replicated(table_moments(nnx.state(optimizer)), mesh)
    if mode == AxisType.Explicit:  # with Auto axes XLA may choose other shardings
        assert jax.typeof(model.embed[...]).sharding.spec == P("x", None)
        assert jax.typeof(model.lm_head[...]).sharding.spec == P(None, "x")


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        embed_init = nn.with_partitioning(init, ("x", None))
        head_init = nn.with_partitioning(init, (None, "x"))
        x = nn.Embed(64, 16, embedding_init=embed_init, name="embed")(ids)
        return nn.Dense(64, use_bias=False, kernel_init=head_init, name="lm_head")(x)


def test_boxed_train_state_has_valid_specs() -> None:
    mesh, model = make_mesh(AxisType.Auto), LinenModel()

    def create() -> TrainState:
        params = model.init(jax.random.key(0), IDS)["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=with_ember())

    def step(state: TrainState) -> TrainState:
        def loss_fn(params: Any) -> jax.Array:
            logits = state.apply_fn({"params": params}, IDS[:, :-1])
            return cross_entropy(logits, IDS[:, 1:])

        return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))

    with jax.set_mesh(mesh):
        specs = nn.get_partition_spec(jax.eval_shape(create))
        assert all(spec == P() for spec in table_moments(specs.opt_state))
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        state = jax.jit(create, out_shardings=shardings)()
        state = jax.jit(step, out_shardings=shardings)(state)
    assert_replicated(table_moments(state.opt_state), mesh)
    embedding = state.params["embed"]["embedding"].value
    assert embedding.sharding.spec == P("x", None)


@every_optimizer
def test_map_params_gives_a_usable_tree_of_shardings(make_tx: Any) -> None:
    mesh, tx = make_mesh(AxisType.Auto), make_tx()
    params = {"embed": {"embedding": jnp.ones((64, 16))}, "mid": jnp.ones((16, 32))}
    specs = {"embed": {"embedding": P("x", None)}, "mid": P(None, "y")}
    state_specs = optax.tree.map_params(
        tx,
        lambda _, spec: spec,
        jax.eval_shape(tx.init, params),
        specs,
        transform_non_params=lambda _: P(),
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), state_specs)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    assert_replicated(table_moments(state), mesh)
    ((_, mu),) = optax.tree.get_all_with_path(state, "mu")
    assert mu["mid"].sharding.spec == P(None, "y")


def few_steps(tx: Any, tables: Any) -> Any:
    # A scan would need a state whose type says that it differs between shards.
    state = tx.init(tables)
    for seed in range(4):
        grads = jax.tree.map(lambda x, seed=seed: jnp.sin(9 * x + seed), tables)
        updates, state = tx.update(grads, state, tables)
        tables = optax.apply_updates(tables, updates)
    return tables


def assert_equals_one_device(result: Any, tables: Any) -> None:
    expected = jax.jit(few_steps, static_argnums=0)(ember_optax.ember(1e-2), tables)
    chex.assert_trees_all_close(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("names", [(None, "y"), ("x", "y")], ids=str)
def test_statistics_inside_shard_map_are_those_of_all_shards(names: Any) -> None:
    tables = {"embed": TABLE, "other": jnp.cos(TABLE)}
    tx = ember_optax.ember(1e-2, vocab_axis=0, axis_names=names)
    sharded_steps = jax.shard_map(
        lambda tables: few_steps(tx, tables),
        mesh=make_mesh(AxisType.Auto),
        in_specs=P(*names),
        out_specs=P(*names),
    )
    assert_equals_one_device(jax.jit(sharded_steps)(tables), tables)


@every_mode
def test_inside_shard_map_over_some_axes_the_others_are_left_to_xla(
    mode: AxisType,
) -> None:
    mesh = make_mesh(mode)
    tx = ember_optax.ember(1e-2, vocab_axis=0, axis_names=("x", None))
    sharded_steps = jax.shard_map(
        lambda table: few_steps(tx, table),
        mesh=mesh,
        in_specs=P("x"),
        out_specs=P("x"),
        axis_names={"x"},
    )
    for spec in (P("x", "y"), P(("x", "y"), None)):
        table = jax.device_put(TABLE, NamedSharding(mesh, spec))
        assert_equals_one_device(jax.jit(sharded_steps)(table), TABLE)


def test_inside_vmap_with_a_name() -> None:
    tx = ember_optax.ember(1e-2, vocab_axis=0, axis_names=("shard", None))
    shards = TABLE.reshape(4, 16, 16)
    steps = jax.vmap(lambda x: few_steps(tx, x), axis_name="shard")
    result = jax.jit(steps)(shards)
    assert_equals_one_device(result.reshape(TABLE.shape), TABLE)
