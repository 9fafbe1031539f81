"""One model in every container that users keep parameters in, with equal steps."""

import functools
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
    "tuple": lambda t, m: ({"embed": t}, [m]),
    "named tuple": Layers,
    "equinox": equinox,
    "haiku": lambda t, m: {"lm/~/embed": {"embeddings": t}, "lm/~/mid": {"w": m}},
}


def multi_transform() -> optax.GradientTransformationExtraArgs:
    return optax.multi_transform(
        {"table": ember_optax.ember(1e-2), "body": optax.adamw(1e-3)},
        ember_optax.label_token_tables,
    )


def with_ember() -> optax.GradientTransformationExtraArgs:
    return ember_optax.with_ember(
        optax.adamw(1e-3), head_learning_rate=1e-2, max_norm=1.0
    )


OPTIMIZERS = [multi_transform, with_ember]
every_optimizer = pytest.mark.parametrize(
    "make_tx", OPTIMIZERS, ids=lambda make: make.__name__
)


def step(tx: Any, params: Any, state: Any) -> tuple[Any, Any]:
    grads = jax.tree.map(jnp.sin, params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def ember_state(state: Any) -> ember_optax.EmberState:
    if isinstance(state, ember_optax.WithEmberState):
        return state.ember
    return state.inner_states["table"].inner_state[0]


@every_optimizer
def test_container(make_tx: Any) -> None:
    plain, tx = nested(TABLE, MATRIX), make_tx()
    jitted = jax.jit(functools.partial(step, tx))
    expected, _ = jitted(*jitted(plain, tx.init(plain)))
    for name, make in CONTAINERS.items():
        params = make(TABLE, MATRIX)
        after, state = jitted(*jitted(params, tx.init(params)))
        chex.assert_trees_all_equal_structs(after, params)
        leaves = jax.tree.leaves(after), jax.tree.leaves(expected)
        chex.assert_trees_all_close(*leaves, rtol=1e-6, custom_message=name)
        (moments,) = ember_state(state).tables.values()
        chex.assert_shape(moments, [(12,), (4,)])


@every_optimizer
def test_nnx_optimizer(make_tx: Any) -> None:
    model, params, tx = NnxModel(), nested(TABLE, MATRIX), make_tx()
    optimizer, state = nnx.Optimizer(model, tx, wrt=nnx.Param), tx.init(params)
    for _ in range(3):
        optimizer.update(model, jax.tree.map(jnp.sin, nnx.state(model, nnx.Param)))
        params, state = step(tx, params, state)
    table = model.embed.embedding[...]
    chex.assert_trees_all_close(table, params["embed"]["embedding"], rtol=1e-6)


def test_nnx_path_is_the_same_at_init_and_update() -> None:
    model = NnxModel()
    grads = nnx.grad(lambda model: model.mid[0, 0])(model)
    for tree in (nnx.state(model, nnx.Param), grads, nnx.to_pure_dict(grads)):
        assert ember_optax.summarize(tree).tables[0].path == "embed/embedding"
