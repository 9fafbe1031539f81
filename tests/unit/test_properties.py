"""Invariants of Ember that hold for all gradients."""

import functools

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import optax
from hypothesis import given, settings

import ember_optax

STEPS, V, D = 3, 5, 4  # one shape, so that each optimizer is compiled once

# Zeros, equal numbers and six orders of magnitude; 1e-3 and more is out of the reach of
# eps.
numbers = st.floats(-1e3, 1e3, width=32).map(lambda x: x if abs(x) >= 1e-3 else 0.0)
gradients = hnp.arrays(np.float32, (STEPS, V, D), elements=numbers)
orders = st.integers(0, 2**32 - 1).map(np.random.default_rng)
few_examples = settings(max_examples=40)

scale_by_ember = functools.cache(ember_optax.scale_by_ember)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def _run(tx: optax.GradientTransformation, grads: jax.Array):
    def step(state: optax.OptState, grad: jax.Array):
        update, state = tx.update({"table": grad}, state)
        moments = state.tables["table"]
        return state, (update["table"], moments.row, moments.col)

    return jax.lax.scan(step, tx.init({"table": grads[0]}), grads)[1]


def run(grads: np.ndarray, **options: object) -> list[np.ndarray]:
    """Computes the update, the row and the col of every step."""
    return jax.device_get(_run(scale_by_ember(**options), grads))


@few_examples
@given(gradients)
def test_sign_zeros_and_statistics(grads: np.ndarray) -> None:
    update, row, col = run(grads)
    np.testing.assert_array_equal(np.sign(update), np.sign(grads))
    for statistic in (row, col):
        assert np.isfinite(statistic).all()
        assert statistic.min() >= 0
    close(row.mean(axis=1), col.mean(axis=1))


@few_examples
@given(gradients)
def test_transposed_table_has_the_transposed_update(grads: np.ndarray) -> None:
    update, row, col = run(grads)
    update_t, row_t, col_t = run(grads.mT)
    close(update_t.mT, update)
    close(row_t, row)  # the longer axis holds the tokens in both
    close(col_t, col)


@few_examples
@given(gradients)
def test_either_axis_can_hold_the_tokens(grads: np.ndarray) -> None:
    update, row, col = run(grads)
    swapped_update, swapped_row, swapped_col = run(grads, vocab_axis=1)
    close(swapped_update, update)
    close(swapped_row, col)
    close(swapped_col, row)


@few_examples
@given(gradients)
def test_padding_tokens_change_nothing(grads: np.ndarray) -> None:
    update, row, _ = run(grads)
    padded_update, padded_row, _ = run(np.pad(grads, ((0, 0), (0, 10), (0, 0))))
    close(padded_update[:, :V], update)
    close(padded_row[:, :V], row)
    assert not padded_update[:, V:].any()
    assert not padded_row[:, V:].any()


@few_examples
@given(gradients)
def test_columns_over_two_axes_equal_those_over_one(grads: np.ndarray) -> None:
    update, row, col = run(grads)
    folded_update, folded_row, folded_col = run(grads.reshape(STEPS, V, 2, D // 2))
    close(folded_update.reshape(grads.shape), update)
    close(folded_row, row)
    close(folded_col.reshape(STEPS, D), col)


@few_examples
@given(grads=gradients, exponent=st.integers(-20, 20))
def test_scale_of_the_gradient_does_not_matter(
    grads: np.ndarray, exponent: int
) -> None:
    update, _, _ = run(grads, eps=1e-30)
    scaled_update, _, _ = run(grads * np.float32(2) ** exponent, eps=1e-30)
    close(scaled_update, update)


@few_examples
@given(grads=gradients, rng=orders)
def test_order_of_tokens_and_columns_does_not_matter(
    grads: np.ndarray, rng: np.random.Generator
) -> None:
    tokens, columns = rng.permutation(V), rng.permutation(D)
    update, row, col = run(grads)
    new_update, new_row, new_col = run(grads[:, tokens][..., columns])
    close(new_update, update[:, tokens][..., columns])
    close(new_row, row[:, tokens])
    close(new_col, col[:, columns])
