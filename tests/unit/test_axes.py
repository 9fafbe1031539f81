"""Which axis holds the tokens, wherever a table or its state is met."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")


def trained(tx: Any, params: Any, steps: int = 3) -> Any:
    rng = np.random.default_rng(0)
    state = tx.init(params)
    for _ in range(steps):
        grads = jax.tree.map(lambda x: gradient(rng, x.shape), params)
        _, state = tx.update(grads, state, params)
    return state


def gradient(rng: np.random.Generator, shape: tuple[int, ...]) -> jax.Array:
    return jnp.float32(rng.normal(size=shape) * np.arange(1, 1 + shape[-1]))


def table(*shape: int) -> dict[str, jax.Array]:
    return {"embed": jnp.ones(shape)}


# Tables whose longest axis changes


@pytest.mark.parametrize(
    ("before", "after", "axis"),
    [((60, 51), (50, 51), 0), ((51, 60), (51, 50), 1), ((51, 60), (51, 51), 1)],
)
def test_resize_to_fewer_tokens_than_columns(
    before: Any, after: Any, axis: int
) -> None:
    old, new = table(*before), table(*after)
    state = trained(ember_optax.ember(1e-2), old)
    with pytest.raises(ValueError, match=r"vocab_axis=\{'embed': ") as error:
        ember_optax.resize_vocab(state, old, new)
    assert f"'embed': {axis}}} here and to the optimizer" in str(error.value)

    vocab_axis = {"embed": axis}
    tx = ember_optax.ember(1e-2, vocab_axis=vocab_axis)
    resized = ember_optax.resize_vocab(state, old, new, vocab_axis=vocab_axis)
    chex.assert_trees_all_equal_shapes_and_dtypes(resized, tx.init(new))
    tx.update(new, resized, new)


def test_resize_to_a_square_table_keeps_its_first_axis() -> None:
    old, new = table(60, 51), table(51, 51)
    tx = ember_optax.ember(1e-2)
    resized = ember_optax.resize_vocab(trained(tx, old), old, new)
    chex.assert_trees_all_equal_shapes_and_dtypes(resized, tx.init(new))


# Square tables


@pytest.mark.parametrize("shape", [(6, 6), (4, 4, 4)])
def test_a_square_table_is_refused_without_its_axis(shape: Any) -> None:
    params = table(*shape)
    tx, adam = ember_optax.ember(1e-2, vocab_axis=1), optax.adam(1e-2)
    state = trained(tx, params)
    for call in (
        lambda: ember_optax.from_adam(trained(adam, params), tx, params, adam_b2=0.999),
        lambda: ember_optax.to_adam(state, adam, params, adam_b2=0.999),
        lambda: ember_optax.resize_vocab(state, params, params),
    ):
        with pytest.raises(ValueError, match="does not tell which of the axes"):
            call()


@pytest.mark.parametrize("vocab_axis", [0, 1, -1, {"embed": 1}])
def test_square_tables_convert_along_the_given_axis(vocab_axis: Any) -> None:
    params = table(6, 6)
    tx, adam = ember_optax.ember(1.0, vocab_axis=vocab_axis), optax.adam(1e-2)
    state = trained(tx, params)
    back = ember_optax.to_adam(
        state, adam, params, adam_b2=0.999, vocab_axis=vocab_axis
    )
    row, col = state[0].tables["embed"]
    vhat = np.outer(row, col) / np.mean(row)
    expected = vhat if vocab_axis == 0 else vhat.T
    np.testing.assert_allclose(back[0].nu["embed"], expected, rtol=1e-5)
    again = ember_optax.from_adam(
        back, tx, params, adam_b2=0.999, vocab_axis=vocab_axis
    )
    chex.assert_trees_all_close(again[0].tables, state[0].tables, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_from_adam_gives_the_next_update_of_ember(axis: int) -> None:
    params = table(6, 6)
    tx = ember_optax.ember(1.0, vocab_axis=axis)
    switched = ember_optax.from_adam(
        trained(optax.adam(1e-2), params), tx, params, adam_b2=0.999, vocab_axis=axis
    )
    expected = trained(tx, params)
    chex.assert_trees_all_close(switched[0].tables, expected[0].tables, rtol=1e-5)


# The mapping


def test_an_axis_that_does_not_fit_the_state() -> None:
    params = table(8, 5)
    state = trained(ember_optax.ember(1e-2), params)
    with pytest.raises(ValueError, match=r"with vocab_axis 1, but its state is a row"):
        ember_optax.to_adam(state, optax.adam(1e-2), params, adam_b2=0.9, vocab_axis=1)
