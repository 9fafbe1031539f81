"""Ember under `jax.vmap`, in every dtype, and at the last step it can count."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from tests.unit.test_composition import TABLE_GRADS, TABLE_PARAMS, Tree, make_tables


def step(tx: Any, params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def test_vmap_over_hyperparameters_is_a_loop() -> None:
    @jax.jit
    def one_trial(learning_rate: Any, b2: Any, eps: Any, weight_decay: Any) -> Tree:
        tx = ember_optax.ember(learning_rate, b2, eps, weight_decay)
        params, state = step(tx, TABLE_PARAMS, tx.init(TABLE_PARAMS), TABLE_GRADS[0])
        return step(tx, params, state, TABLE_GRADS[1])[0]

    trials = np.float32([[0.1, 0.9, 1e-8, 0], [1e-2, 0.99, 1e-3, 0.1]])
    together = jax.vmap(one_trial)(*trials.T)
    for i, trial in enumerate(trials):
        actual = jax.tree.map(lambda x, i=i: x[i], together)
        chex.assert_trees_all_close(actual, one_trial(*trial), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("params_dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("grads_dtype", [jnp.bfloat16, jnp.float32])
def test_updates_have_the_dtype_of_the_gradients_and_the_state_is_float32(
    params_dtype: Any, grads_dtype: Any
) -> None:
    tx = ember_optax.scale_by_ember()
    state = tx.init(make_tables(0, params_dtype))
    assert {x.dtype for x in jax.tree.leaves(state.tables)} == {jnp.dtype(jnp.float32)}
    updates, new_state = tx.update(make_tables(1, grads_dtype), state)
    assert {x.dtype for x in updates.values()} == {jnp.dtype(grads_dtype)}
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)


def test_count_does_not_overflow() -> None:
    tx = ember_optax.scale_by_ember()
    largest = jnp.array(2**31 - 1, jnp.int32)
    state = tx.init(TABLE_PARAMS)._replace(count=largest)
    updates, state = tx.update(TABLE_GRADS[0], state)
    assert state.count == largest
    chex.assert_tree_all_finite(updates)
