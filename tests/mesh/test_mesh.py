"""The state stays replicated on a mesh while the tables are sharded."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
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
    hundred_steps,
    make_tables,
    one_device,
    present,
    table_moments,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")

IDS = jnp.arange(8 * 9).reshape(8, 9) % 64
MODES = [AxisType.Auto, AxisType.Explicit]
LAYOUTS = [
    ((8,), P()),
    ((8,), P("x", None)),
    ((8,), P(None, "x")),
    ((4, 2), P("x", "y")),
    ((2, 4), P("y", "x")),
    ((2, 4), P("x", None)),
    ((4, 2), P(("x", "y"), None)),
    ((4, 2), P(None, ("y", "x"))),
    ((2, 2, 2), P(("x", "z"), "y")),
    ((2, 2, 2), P("z", None)),
]


def make_mesh(mode: AxisType, shape: tuple[int, ...] = (4, 2)) -> jax.sharding.Mesh:
    names = ("x", "y", "z")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(mode,) * len(shape))


def make_tx() -> optax.GradientTransformationExtraArgs:
    return optax.multi_transform(
        {
            "table": ember_optax.ember(1e-2, weight_decay=0.1),
            "body": optax.adamw(1e-3),
        },
        ember_optax.label_token_tables,
    )


TABLES = make_tables()

WAYS = {
    "auto": (AxisType.Auto, False, {}),
    "auto, shardings given": (AxisType.Auto, True, {}),
    "auto, active": (AxisType.Auto, True, {"column_mean": "active"}),
    "auto, rows sharded": (AxisType.Auto, True, {"row_state": "sharded"}),
    "explicit": (AxisType.Explicit, False, {}),
    "explicit, rows sharded": (AxisType.Explicit, False, {"row_state": "sharded"}),
    "explicit, active": (
        AxisType.Explicit,
        False,
        {"row_state": "sharded", "column_mean": "active"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("shape", "spec"), LAYOUTS, ids=str)
def test_sharded_tables_equal_those_on_one_device(
    way: str, shape: tuple[int, ...], spec: P
) -> None:
    mode, shardings_given, options = WAYS[way]
    mesh = make_mesh(mode, shape)
    sharding = NamedSharding(mesh, spec)
    given = {"param_shardings": dict.fromkeys(TABLES, sharding)}
    tx = ember_optax.ember(1e-2, **options, **(given if shardings_given else {}))
    with jax.set_mesh(mesh):
        tables = jax.device_put(TABLES, sharding)
        train = jax.jit(hundred_steps, static_argnums=0)
        result, state = train(tx, tables)
        again, _ = train(tx, tables)
    if "row_state" not in options:
        assert_replicated(table_moments(state), mesh)
    result, again = jax.device_get((result, again))
    chex.assert_trees_all_equal(result, again)
    expected = one_device(options.get("column_mean", "all"))
    chex.assert_trees_all_close(result, expected, rtol=1e-6, atol=1e-6)
    for name, table in TABLES.items():
        absent = np.asarray(present(table) == 0)
        chex.assert_trees_all_equal(result[name][absent], np.asarray(table)[absent])


@pytest.mark.parametrize("shardings_given", [False, True])
@pytest.mark.parametrize("spec", [P("x", "y"), P("y", "x"), P(("x", "y"), None)])
def test_on_a_mesh_of_both_kinds_of_axes(spec: P, shardings_given: bool) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), tuple(MODES[::-1]))
    sharding = NamedSharding(mesh, spec)
    given = dict.fromkeys(TABLES, sharding) if shardings_given else None
    tx = ember_optax.ember(1e-2, param_shardings=given)
    with jax.set_mesh(mesh):
        tables = jax.device_put(TABLES, sharding)
        state = jax.jit(tx.init)(tables)
        _, new_state = jax.jit(tx.update)(tables, state, tables)
        result, _ = jax.jit(hundred_steps, static_argnums=0)(tx, tables)
    assert_replicated(table_moments((state, new_state)), mesh)
    expected = one_device("all")
    chex.assert_trees_all_close(jax.device_get(result), expected, rtol=1e-6, atol=1e-6)


def test_with_shardings_no_mesh_in_context_is_needed() -> None:
    mesh = make_mesh(AxisType.Auto)
    shardings = {"embed": NamedSharding(mesh, P("x", "y"))}
    tx = ember_optax.scale_by_ember(row_state="sharded", param_shardings=shardings)
    tables = jax.device_put({"embed": TABLES["embed"]}, shardings)
    state = jax.jit(tx.init)(tables)
    _, new_state = jax.jit(tx.update)(tables, state)
    for row, col in (state.tables["embed"], new_state.tables["embed"]):
        assert row.sharding.spec == P("x")
        assert_replicated([col], mesh)


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
