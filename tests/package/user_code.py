"""A user's code, as mypy --strict and pyright see it with the wheel: `make package`."""

# mypy: disable-error-code="import-untyped"

from collections.abc import Callable
from typing import assert_type

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.typing import ArrayLike

import ember_optax
from ember_optax import lazy
from ember_optax._types import Tree
from ember_optax.experimental import fused

params = {"embed": jnp.ones((8, 4)), "mlp": jnp.ones((4, 4))}

decay = ember_optax.adafactor_decay()
assert_type(decay, Callable[[ArrayLike], jax.Array])

summary = ember_optax.summarize(params)
assert_type(summary, ember_optax.Summary)
assert_type(summary.tables[0].shape, tuple[int, ...])

assert_type(ember_optax.label_token_tables(params), Tree[str])

rule = ember_optax.scale_by_ember(decay)
state = rule.init({"embed": params["embed"]})
assert_type(state, ember_optax.EmberState)
assert_type(state.tables["embed"].row, jax.Array)
resized = ember_optax.resize_vocab(state, params, params)
assert_type(resized, ember_optax.EmberState)

tx = ember_optax.clipped(ember_optax.ember(1e-2, decay), max_norm=1.0)
assert_type(tx.init(params)[0], ember_optax.EmberState)
updates, stepped_state = tx.update(params, tx.init(params), params)
assert_type(updates, dict[str, jax.Array])
assert_type(stepped_state[0].count, jax.Array)
rounding = ember_optax.stochastic_rounding(seed=0)
assert_type(rounding.init(params), ember_optax.StochasticRoundingState)

# A state has the type that the optimizer to go on with gives it.
adam = optax.adamw(1e-3)
assert_type(
    ember_optax.from_adam(adam.init(params), rule, params), ember_optax.EmberState
)
adam.update(params, ember_optax.to_adam(state, adam, params), params)


def place(param_shardings: dict[str, NamedSharding]) -> None:
    shardings = ember_optax.opt_state_shardings(tx, params, param_shardings)
    assert_type(shardings, Tree[NamedSharding])
    jax.jit(tx.init, out_shardings=shardings)


# They go where optax wants its own.
mixed = optax.multi_transform(
    {"table": ember_optax.ember(1e-2), "body": adam}, ember_optax.label_token_tables
)
ember_optax.clipped(optax.chain(mixed, rounding), max_norm=1.0)

table, ids = jnp.zeros((100, 4)), jnp.array([1, 2])
rows = lazy.init(table)
assert_type(rows, lazy.LazyState)
grads = lazy.rows(table, rows, ids)
stepped = lazy.apply(table, rows, ids, grads, learning_rate=0.1)
assert_type(stepped, tuple[jax.Array, lazy.LazyState])

grad = jnp.ones((100, 4))
moved = fused.apply(table, fused.init(table), grad, learning_rate=0.1)
assert_type(moved, tuple[jax.Array, fused.FusedState])
