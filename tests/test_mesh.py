"""The state stays replicated on a mesh while the tables are sharded."""

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

pytestmark = pytest.mark.usefixtures("standard_promotion")

IDS = jnp.arange(8 * 9).reshape(8, 9) % 64
MODES = [AxisType.Auto, AxisType.Explicit]
LAYOUTS = [
    P(),
    P("x", None),
    P(None, "x"),
    P("x", "y"),
    P("y", "x"),
    P(("x", "y"), None),
    P(None, ("x", "y")),
]


def make_mesh(mode: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(mode, mode))


def make_tx() -> optax.GradientTransformationExtraArgs:
    return optax.multi_transform(
        {
            "table": ember_optax.ember(1e-2, weight_decay=0.1),
            "body": optax.adamw(1e-3),
        },
        ember_optax.label_token_tables,
    )


def table_moments(tree: Any) -> list[jax.Array]:
    """Every row and col in a state, wherever it is."""
    return [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if "tables" in jax.tree_util.keystr(path)
    ]


def assert_replicated(moments: list[jax.Array], mesh: jax.sharding.Mesh) -> None:
    assert moments
    for x in moments:
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, P()), x.ndim)


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("spec", LAYOUTS, ids=str)
@pytest.mark.parametrize("column_mean", ["all", "active"])
def test_state_is_replicated_and_equal_to_one_device(
    mode: AxisType, spec: P, column_mean: Any
) -> None:
    tx = ember_optax.ember(1e-2, weight_decay=0.1, column_mean=column_mean)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p))
    table = {"embed": jax.random.normal(jax.random.key(0), (64, 16))}
    grads = {"embed": jnp.sin(9 * table["embed"])}
    expected, state = table, tx.init(table)
    for _ in range(3):
        updates, state = step(grads, state, expected)
        expected = optax.apply_updates(expected, updates)

    mesh = make_mesh(mode)
    table, grads = jax.device_put((table, grads), NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        state = tx.init(table)
        chex.clear_trace_counter()
        step = jax.jit(chex.assert_max_traces(lambda g, s, p: tx.update(g, s, p), 1))
        for _ in range(3):
            updates, state = step(grads, state, table)
            table = optax.apply_updates(table, updates)
            assert_replicated(table_moments(state), mesh)
    chex.assert_trees_all_close(table, expected, rtol=1e-6)
    assert table["embed"].sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)


class LanguageModel(nnx.Module):
    """A model that says how its lookup is sharded, as Explicit axes ask it to."""

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


def loss_fn(model: nnx.Module, ids: jax.Array) -> jax.Array:
    logits = model(ids[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()


@nnx.jit
def nnx_step(model: Any, optimizer: nnx.Optimizer, ids: jax.Array) -> jax.Array:
    loss, grads = nnx.value_and_grad(loss_fn)(model, ids)
    optimizer.update(model, grads)
    return loss


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
