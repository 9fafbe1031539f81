"""Ember under the transformations of JAX, in every dtype."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from tests.unit.test_composition import (
    TABLE_GRADS,
    TABLE_PARAMS,
    Tree,
    make_ember,
    make_tables,
    run,
)


def step(tx: Any, params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_jit_changes_nothing(self) -> None:
        tx = make_ember()
        state = self.variant(tx.init)(TABLE_PARAMS)
        updates, _ = self.variant(tx.update)(TABLE_GRADS[0], state, TABLE_PARAMS)
        expected, _ = run(tx, TABLE_PARAMS, TABLE_GRADS[:1])
        chex.assert_trees_all_close(updates, expected[0], rtol=1e-5)


def test_vmap_over_seeds_is_a_loop() -> None:
    tx = make_ember()
    stack = lambda trees: jax.tree.map(lambda *x: np.stack(x), *trees)  # noqa: E731
    params, grads = [make_tables(s) for s in (0, 1)], [make_tables(s) for s in (2, 3)]

    @jax.jit
    def one_seed(params: Tree, grads: Tree) -> tuple[Tree, Any]:
        new, state = step(tx, params, tx.init(params), grads)
        return step(tx, new, state, grads)

    together = jax.vmap(one_seed)(stack(params), stack(grads))
    expected = stack([one_seed(p, g) for p, g in zip(params, grads, strict=True)])
    chex.assert_trees_all_close(together, expected, rtol=1e-5, atol=1e-6)


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


def test_donated_buffers_are_reused() -> None:
    tx = make_ember()
    params = jax.tree.map(jnp.array, TABLE_PARAMS)
    state = tx.init(params)
    expected = step(tx, params, state, TABLE_GRADS[0])
    jitted = jax.jit(lambda *args: step(tx, *args), donate_argnums=(0, 1))
    after = jitted(params, state, TABLE_GRADS[0])
    chex.assert_trees_all_close(after, expected, rtol=1e-5, atol=1e-6)
    assert all(x.is_deleted() for x in jax.tree.leaves((params, state)))


def test_learning_rate_can_be_differentiated() -> None:
    def loss(learning_rate: jax.Array) -> jax.Array:
        tx = ember_optax.ember(learning_rate)
        params, state = TABLE_PARAMS, tx.init(TABLE_PARAMS)
        for _ in range(2):
            params, state = step(tx, params, state, params)
        return sum(jnp.sum(table**2) for table in params.values())

    chex.assert_numerical_grads(jax.jit(loss), (jnp.array(0.1),), order=1)


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
