"""A user's code, as mypy --strict and pyright see it with the wheel: `make package`."""

from collections.abc import Callable
from typing import assert_type

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import ember_optax
from ember_optax import lazy
from ember_optax.experimental import fused

params = {"embed": jnp.ones((8, 4)), "mlp": jnp.ones((4, 4))}

decay = ember_optax.adafactor_decay()
assert_type(decay, Callable[[ArrayLike], jax.Array])

summary = ember_optax.summarize(params)
assert_type(summary, ember_optax.Summary)
assert_type(summary.tables[0].shape, tuple[int, ...])

tx = ember_optax.clipped(ember_optax.ember(1e-2, decay), max_norm=1.0)
state = ember_optax.scale_by_ember(decay).init({"embed": params["embed"]})
assert_type(state, ember_optax.EmberState)
assert_type(state.tables["embed"].row, jax.Array)
resized = ember_optax.resize_vocab(state, params, params)
assert_type(resized, ember_optax.EmberState)

table, ids = jnp.zeros((100, 4)), jnp.array([1, 2])
rows = lazy.init(table)
assert_type(rows, lazy.LazyState)
grads = lazy.rows(table, rows, ids)
stepped = lazy.apply(table, rows, ids, grads, learning_rate=0.1)
assert_type(stepped, tuple[jax.Array, lazy.LazyState])

grad = jnp.ones((100, 4))
moved = fused.apply(table, fused.init(table), grad, learning_rate=0.1)
assert_type(moved, tuple[jax.Array, fused.FusedState])
