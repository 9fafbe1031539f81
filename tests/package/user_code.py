"""A user's code, as mypy --strict and pyright see it with the wheel: `make package`."""

# mypy: disable-error-code="import-untyped"

from collections.abc import Callable
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.typing import ArrayLike

import ember_optax
from ember_optax import lazy

params = {"embed": jnp.ones((8, 4)), "mlp": jnp.ones((4, 6))}

decay = ember_optax.adafactor_decay(max_decay=0.99)
assert_type(decay, Callable[[ArrayLike], jax.Array])

summary = ember_optax.summarize(params)
assert_type(summary.tables[0].shape, tuple[int, ...])

# Transformations have the types of Optax, and their states are Any, as there.
body = optax.adamw(1e-3)
tx = ember_optax.with_ember(
    body,
    embed_learning_rate=0.2,
    head_learning_rate=optax.constant_schedule(0.01),
    other_learning_rates={"embed": 0.6},
    max_norm=1.0,
    vocab_size=8,
)
updates, state = tx.update(params, tx.init(params), params)
params = optax.apply_updates(params, updates)


def count_steps(state: ember_optax.WithEmberState) -> jax.Array:
    assert_type(state.ember.tables["embed"], ember_optax.TableMoments)
    return state.ember.count


# They go where Optax expects its own.
rule = ember_optax.scale_by_ember(decay)
mixed = optax.multi_transform(
    {"table": ember_optax.ember(1e-2), "body": body}, ember_optax.label_token_tables
)
optax.MultiSteps(optax.chain(mixed, ember_optax.stochastic_rounding(seed=0)), 2)


def resize_and_switch(state: ember_optax.EmberState, adam_state: Any) -> None:
    ember_optax.resize_vocab(state, params, params)
    ember_optax.from_adam(adam_state, rule, params, adam_b2=0.999)
    body.update(params, ember_optax.to_adam(state, body, params, adam_b2=0.999))
    ember_optax.untie(state, rule, params, {"lm_head": "embed"})
    scalars = ember_optax.monitor(state, updates=params, params=params, b2=decay)
    assert_type(scalars, dict[str, jax.Array])


def place(param_shardings: dict[str, NamedSharding]) -> None:
    shardings = ember_optax.opt_state_shardings(tx, params, param_shardings)
    jax.jit(tx.init, out_shardings=shardings)


table, ids = jnp.zeros((100, 4)), jnp.array([1, 2])
rows = lazy.init(table)
assert_type(rows, lazy.LazyState)
grads = lazy.lookup(table, rows, ids)
stepped = lazy.update(table, rows, ids, grads, learning_rate=0.1)
assert_type(stepped, tuple[jax.Array, lazy.LazyState])
