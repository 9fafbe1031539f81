"""The state stays replicated on a mesh while the tables are sharded."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
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
