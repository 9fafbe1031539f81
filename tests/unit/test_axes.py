"""The axis that holds the tokens, in conversions and when the vocabulary changes."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")


def table(*shape: int) -> dict[str, jax.Array]:
    return {"embed": jnp.ones(shape)}


def trained(tx: Any, params: Any) -> Any:
    rng = np.random.default_rng(0)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(3):
        grads = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), params)
        _, state = update(grads, state, params)
    return state


def from_adam(state: Any, tx: Any, params: Any, **options: Any) -> Any:
    return ember_optax.from_adam(state, tx, params, adam_b2=0.999, **options)


def to_adam(state: Any, tx: Any, params: Any, **options: Any) -> Any:
    return ember_optax.to_adam(state, tx, params, adam_b2=0.999, **options)


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


@pytest.mark.parametrize("shape", [(6, 6), (4, 4, 4)])
def test_square_table_without_its_axis_raises(shape: Any) -> None:
    params = table(*shape)
    tx, adam = ember_optax.ember(1e-2, vocab_axis=1), optax.adam(1e-2)
    state = trained(tx, params)
    for call in (
        lambda: from_adam(trained(adam, params), tx, params),
        lambda: to_adam(state, adam, params),
        lambda: ember_optax.resize_vocab(state, params, params),
    ):
        with pytest.raises(ValueError, match="does not tell which of the axes"):
            call()


@pytest.mark.parametrize("vocab_axis", [0, -1, {"embed": 1}])
def test_square_tables_convert_along_the_given_axis(vocab_axis: Any) -> None:
    params = table(6, 6)
    tx, adam = ember_optax.ember(1.0, vocab_axis=vocab_axis), optax.adam(1e-2)
    state = trained(tx, params)
    back = to_adam(state, adam, params, vocab_axis=vocab_axis)
    row, col = state[0].tables["embed"]
    vhat = np.outer(row, col) / np.mean(row)
    expected = vhat if vocab_axis == 0 else vhat.T
    np.testing.assert_allclose(back[0].nu["embed"], expected, rtol=1e-5)
    again = from_adam(back, tx, params, vocab_axis=vocab_axis)
    chex.assert_trees_all_close(again[0].tables, state[0].tables, rtol=1e-5)
    # Both saw the same gradients.
    switched = from_adam(trained(adam, params), tx, params, vocab_axis=vocab_axis)
    chex.assert_trees_all_close(switched[0].tables, state[0].tables, rtol=1e-5)


def test_axis_that_does_not_fit_the_state_raises() -> None:
    params = table(8, 5)
    state = trained(ember_optax.ember(1e-2), params)
    with pytest.raises(ValueError, match=r"with vocab_axis 1, but its state is a row"):
        to_adam(state, optax.adam(1e-2), params, vocab_axis=1)


@pytest.mark.parametrize(
    ("axis", "n_tokens"), [(0, 6), (-2, 6), (1, 3), (-1, 3), (np.int64(1), 3)]
)
def test_any_axis_of_the_table_is_accepted(axis: Any, n_tokens: int) -> None:
    tables = ember_optax.scale_by_ember(vocab_axis=axis).init([jnp.ones((6, 3))]).tables
    assert tables["0"].row.shape == (n_tokens,)


def test_axes_are_named_by_paths() -> None:
    params = {"model": {"embed": jnp.ones((3, 8))}, "a.b": jnp.ones((3, 8))}
    tx = ember_optax.scale_by_ember(vocab_axis={"model/embed": 0})
    tables = tx.init(params).tables
    assert tables["model:embed"].row.shape == (3,)
    assert tables["a::b"].row.shape == (8,)
