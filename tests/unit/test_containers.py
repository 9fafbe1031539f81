"""One model in every container that users keep parameters in, stepped alike."""

import dataclasses
from typing import Any, NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze

import ember_optax

pytestmark = pytest.mark.usefixtures("standard_promotion")

TABLE = jax.random.normal(jax.random.key(0), (12, 4))
MATRIX = jax.random.normal(jax.random.key(1), (4, 4))
NAMES = ("one", "vocab")


class Layers(NamedTuple):
    embedding: Any
    kernel: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    embedding: Any
    kernel: Any


class EquinoxModel(eqx.Module):
    embed: eqx.nn.Embedding
    mid: eqx.nn.Linear


class NnxModel(nnx.Module):
    def __init__(self) -> None:
        self.embed = nnx.Embed(12, 4, rngs=nnx.Rngs(0))
        self.embed.embedding = nnx.Param(TABLE)
        self.mid = nnx.Param(MATRIX)


def nested(table: Any, matrix: Any) -> dict[str, Any]:
    return {"embed": {"embedding": table}, "mid": {"kernel": matrix}}


def equinox(table: Any, matrix: Any) -> EquinoxModel:
    model = EquinoxModel(
        eqx.nn.Embedding(weight=table),
        eqx.nn.Linear(4, 4, use_bias=False, key=jax.random.key(0)),
    )
    return eqx.tree_at(lambda m: m.mid.weight, model, matrix)


CONTAINERS = {
    "dict": nested,
    "frozen dict": lambda t, m: freeze(nested(t, m)),
    "linen partitioned": lambda t, m: nested(nn.Partitioned(t, NAMES), m),
    "linen logical": lambda t, m: nested(nn.LogicallyPartitioned(t, NAMES), m),
    "tuple": lambda t, m: ({"embed": t}, [m]),
    "named tuple": Layers,
    "dataclass": Model,
    "equinox": equinox,
    "haiku": lambda t, m: {"lm/~/embed": {"embeddings": t}, "lm/~/mid": {"w": m}},
}


def make_tx() -> optax.GradientTransformationExtraArgs:
    return optax.multi_transform(
        {"table": ember_optax.ember(1e-2), "body": optax.adamw(1e-3)},
        ember_optax.label_token_tables,
    )


def step(tx: Any, params: Any, state: Any) -> tuple[Any, Any]:
    grads = jax.tree.map(jnp.sin, params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def test_labels_reach_table_and_body() -> None:
    """The expected result of every container, from the two optimizers themselves."""
    params = nested(TABLE, MATRIX)
    tx = make_tx()
    after, _ = step(tx, params, tx.init(params))
    for key, alone in {
        "embed": ember_optax.ember(1e-2),
        "mid": optax.adamw(1e-3),
    }.items():
        expected, _ = step(alone, params[key], alone.init(params[key]))
        chex.assert_trees_all_equal(after[key], expected)


@pytest.mark.parametrize("name", CONTAINERS)
def test_container(name: str) -> None:
    params = CONTAINERS[name](TABLE, MATRIX)
    plain = nested(TABLE, MATRIX)
    tx = make_tx()
    state, plain_state = tx.init(params), tx.init(plain)
    jitted = jax.jit(lambda p, s: step(tx, p, s))
    for _ in range(3):
        params, state = jitted(params, state)
        plain, plain_state = jitted(plain, plain_state)
    chex.assert_trees_all_equal_structs(params, CONTAINERS[name](TABLE, MATRIX))
    chex.assert_trees_all_equal(jax.tree.leaves(params), jax.tree.leaves(plain))
    (moments,) = ember_state(state).tables.values()
    chex.assert_shape(moments, [(12,), (4,)])


def test_nnx_optimizer() -> None:
    model, params = NnxModel(), nested(TABLE, MATRIX)
    tx = make_tx()
    optimizer, state = nnx.Optimizer(model, tx, wrt=nnx.Param), tx.init(params)
    for _ in range(3):
        grads = jax.tree.map(jnp.sin, nnx.state(model, nnx.Param))
        optimizer.update(model, grads)
        params, state = step(tx, params, state)
    chex.assert_trees_all_close(
        model.embed.embedding[...], params["embed"]["embedding"]
    )


def test_nnx_path_is_the_same_at_init_and_update() -> None:
    model = NnxModel()
    grads = nnx.grad(lambda model: model.mid[0, 0])(model)
    for tree in (nnx.state(model, nnx.Param), grads, nnx.to_pure_dict(grads)):
        assert ember_optax.summarize(tree).tables[0].path == "embed/embedding"


def ember_state(state: Any) -> ember_optax.EmberState:
    """Finds the state of Ember in the state of `multi_transform`."""
    return state.inner_states["table"].inner_state[0]
