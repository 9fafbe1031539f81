"""What holds for Ember whatever the gradients are."""

import functools

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pytest
from hypothesis import given

import ember_optax

STEPS, V, D = 3, 5, 4  # one shape, so that each optimizer is compiled once

# Zeros, equal numbers and six orders of magnitude; below 1e-3 is zero, to stay away
# from the reach of eps.
numbers = st.floats(-1e3, 1e3, width=32).map(lambda x: x if abs(x) >= 1e-3 else 0.0)
gradients = hnp.arrays(np.float32, (STEPS, V, D), elements=numbers)
permutations = st.integers(0, 2**32 - 1).map(np.random.default_rng)

scale_by_ember = functools.cache(ember_optax.scale_by_ember)
both_means = pytest.mark.parametrize("column_mean", ["all", "active"])

close = functools.partial(np.testing.assert_allclose, rtol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def _run(tx: optax.GradientTransformation, grads: jax.Array):
    def step(state: optax.OptState, grad: jax.Array):
        update, state = tx.update({"table": grad}, state)
        moments = state.tables["table"]
        return state, (update["table"], moments.row, moments.col)

    return jax.lax.scan(step, tx.init({"table": grads[0]}), grads)[1]


def run(grads: np.ndarray, **options: object) -> list[np.ndarray]:
    """Returns the update, the row and the col of every step."""
    return jax.device_get(_run(scale_by_ember(**options), grads))


@given(gradients)
def test_a_transposed_table_has_the_transposed_update(grads: np.ndarray) -> None:
    update, row, col = run(grads)
    update_t, row_t, col_t = run(grads.mT)
    close(update_t.mT, update)
    close(row_t, row)  # tokens stay tokens, for there are more of them than columns
    close(col_t, col)


@given(gradients)
def test_either_axis_can_be_the_tokens(grads: np.ndarray) -> None:
    update, row, col = run(grads)
    swapped_update, swapped_row, swapped_col = run(grads, vocab_axis=1)
    close(swapped_update, update)
    close(swapped_row, col)
    close(swapped_col, row)


@given(gradients)
def test_padding_tokens_change_nothing(grads: np.ndarray) -> None:
    update, row, _ = run(grads)
    padded_update, padded_row, _ = run(np.pad(grads, ((0, 0), (0, 10), (0, 0))))
    close(padded_update[:, :V], update)
    close(padded_row[:, :V], row)
    assert not padded_update[:, V:].any()
    assert not padded_row[:, V:].any()


@given(gradients)
def test_rows_and_columns_have_the_same_mean(grads: np.ndarray) -> None:
    _, row, col = run(grads)
    close(row.mean(axis=1), col.mean(axis=1))


@both_means
@given(grads=gradients)
def test_no_gradient_no_update(grads: np.ndarray, column_mean: str) -> None:
    update, _, _ = run(grads, column_mean=column_mean)
    assert not update[grads == 0].any()


@both_means
@given(grads=gradients)
def test_an_update_has_the_sign_of_its_gradient(
    grads: np.ndarray, column_mean: str
) -> None:
    update, _, _ = run(grads, column_mean=column_mean)
    np.testing.assert_array_equal(np.sign(update), np.sign(grads))


@both_means
@given(grads=gradients)
def test_statistics_are_finite_and_not_negative(
    grads: np.ndarray, column_mean: str
) -> None:
    _, row, col = run(grads, column_mean=column_mean)
    assert np.isfinite(row).all()
    assert np.isfinite(col).all()
    assert row.min() >= 0
    assert col.min() >= 0


@both_means
@given(grads=gradients)
def test_three_axes_are_two(grads: np.ndarray, column_mean: str) -> None:
    update, row, col = run(grads, column_mean=column_mean)
    folded = grads.reshape(STEPS, V, 2, D // 2)
    folded_update, folded_row, folded_col = run(folded, column_mean=column_mean)
    close(folded_update.reshape(grads.shape), update)
    close(folded_row, row)
    close(folded_col.reshape(STEPS, D), col)


@both_means
@given(grads=gradients, exponent=st.integers(-20, 20))
def test_the_scale_of_the_gradient_does_not_matter(
    grads: np.ndarray, exponent: int, column_mean: str
) -> None:
    update, _, _ = run(grads, column_mean=column_mean, eps=0.0)
    scaled = grads * np.float32(2) ** exponent
    scaled_update, _, _ = run(scaled, column_mean=column_mean, eps=0.0)
    close(scaled_update, update)


@both_means
@given(grads=gradients, rng=permutations)
def test_the_order_of_tokens_does_not_matter(
    grads: np.ndarray, rng: np.random.Generator, column_mean: str
) -> None:
    order = rng.permutation(V)
    update, row, col = run(grads, column_mean=column_mean)
    new_update, new_row, new_col = run(grads[:, order], column_mean=column_mean)
    close(new_update, update[:, order])
    close(new_row, row[:, order])
    close(new_col, col)


@both_means
@given(grads=gradients, rng=permutations)
def test_the_order_of_columns_does_not_matter(
    grads: np.ndarray, rng: np.random.Generator, column_mean: str
) -> None:
    order = rng.permutation(D)
    update, row, col = run(grads, column_mean=column_mean)
    new_update, new_row, new_col = run(grads[..., order], column_mean=column_mean)
    close(new_update, update[..., order])
    close(new_row, row)
    close(new_col, col[:, order])


@given(gradients, st.integers(1, V))
def test_steps_of_active_are_smaller_by_the_root_of_the_active_share(
    grads: np.ndarray, active: int
) -> None:
    grads[:, :active, 0] = 1  # the same number of active tokens at every step
    grads[:, active:] = 0
    update, _, _ = run(grads)
    active_update, _, _ = run(grads, column_mean="active")
    close(active_update, update * np.sqrt(active / V), atol=1e-7)
