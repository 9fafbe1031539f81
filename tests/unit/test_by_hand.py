"""Ember against numbers worked out by hand, and against Optax."""

import jax
import numpy as np
import optax
import pytest

from tests.unit.test_oracle import (
    ember,
    gradients,
    last,
    moments,
    normal,
    run,
    scale_by_ember,
)

# The squares of this gradient are [[1, 4], [9, 16], [0, 0]]. Its row means are
# [2.5, 12.5, 0], its column means over all rows [10/3, 20/3], and those have mean 5.
# vhat = row col / 5 = [[5/3, 10/3], [25/3, 50/3], [0, 0]].
GRAD = np.float32([[1, 2], [3, -4], [0, 0]])
UPDATE = {
    # 1/sqrt(5/3), 2/sqrt(10/3), 3/sqrt(25/3), -4/sqrt(50/3)
    "all": [[0.7745967, 1.0954451], [1.0392305, -0.9797959], [0, 0]],
    # Two rows are active: the column means are [5, 10], and mean(row) is again 5:
    # 1/sqrt(2.5), 2/sqrt(5), 3/sqrt(12.5), -4/sqrt(25)
    "active": [[0.6324555, 0.8944272], [0.8485281, -0.8], [0, 0]],
}


@pytest.mark.parametrize("column_mean", ["all", "active"])
def test_a_constant_gradient_gives_the_update_known_by_hand(column_mean: str) -> None:
    grads = np.stack([GRAD] * 10)  # 1 - b2^t cancels at every step
    updates = run(scale_by_ember(column_mean=column_mean), GRAD, grads)[1]
    expected = np.stack([UPDATE[column_mean]] * 10)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("column_mean", "col"), [("all", [10 / 3, 20 / 3]), ("active", [5, 10])]
)
def test_first_statistics_known_by_hand(column_mean: str, col: list[float]) -> None:
    tx = scale_by_ember(column_mean=column_mean)
    row_1, col_1 = last(moments(run(tx, GRAD, GRAD[None])[2]))
    np.testing.assert_allclose(row_1, [0.0025, 0.0125, 0], rtol=1e-6)
    np.testing.assert_allclose(col_1, 0.001 * np.array(col), rtol=1e-6)


def test_eps_is_added_to_the_root() -> None:
    # 1/(sqrt(5/3) + 1), 2/(sqrt(10/3) + 1), 3/(sqrt(25/3) + 1), -4/(sqrt(50/3) + 1)
    expected = [[0.4364917, 0.7077788], [0.7718529, -0.7870169], [0, 0]]
    updates = run(scale_by_ember(eps=1.0), GRAD, GRAD[None])[1]
    np.testing.assert_allclose(updates[0], expected, rtol=1e-6)


def test_weight_decay_is_multiplied_by_the_learning_rate_alone() -> None:
    # 2 - 0.01 (update + 0.5 * 2); tokens without gradient decay as well.
    theta = np.full_like(GRAD, 2)
    thetas, _, _ = run(ember(weight_decay=0.5), theta, GRAD[None])
    expected = 2 - 0.01 * (np.array(UPDATE["all"]) + 1)
    np.testing.assert_allclose(thetas[0], expected, rtol=1e-6)


def test_it_is_the_factored_second_moment_of_adafactor_with_a_debiased_decay() -> None:
    theta, grads = normal((48, 10)), gradients((48, 10), 50)
    factored = optax.scale_by_factored_rms(
        min_dim_size_to_factor=1,
        decay_rate=0.999,
        decay_rate_fn=lambda i, b: b * (1 - b**i) / (1 - b ** (i + 1)),
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        _, expected, _ = run(factored, theta, grads)
    _, updates, _ = run(scale_by_ember(), theta, grads)
    np.testing.assert_allclose(updates, expected, rtol=1e-3)
