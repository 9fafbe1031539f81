"""Ember against numbers worked out by hand and against a NumPy float64 oracle.

Bounds:

- Parameters: the error of each token's vector is at most 2e-6 of the vector's length.
  An element may be close to zero, so a bound on elements would be too strict; a bound
  on the whole table would hide errors in rare tokens.
- Updates and statistics: the error of each element is at most 2e-6 of the element.
  Nothing cancels in them.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from tests.oracle import Oracle

BOUND = 2e-6
TINY = 2e-38  # results below float32's normal numbers may be flushed to zero
LEARNING_RATE = 1e-2
VD = (48, 10)
SHAPES = {"VD": VD, "DV": (10, 48), "VLP": (48, 3, 4), "KVD": (3, 48, 4)}

# Build one optimizer for each setting, so that it is compiled once.
ember = functools.cache(functools.partial(ember_optax.ember, LEARNING_RATE))
scale_by_ember = functools.cache(ember_optax.scale_by_ember)


def run(tx: Any, theta: Any, grads: Any) -> Any:
    """Takes a step for each gradient; returns all parameters, updates and states."""
    return jax.device_get(_run(tx, theta, grads))


@functools.partial(jax.jit, static_argnums=0)
def _run(tx: Any, theta: Any, grads: Any) -> Any:
    def step(carry: Any, grad: Any) -> Any:
        theta, state = carry
        updates, state = tx.update({"table": grad}, state, {"table": theta})
        theta = theta + updates["table"]
        return (theta, state), (theta, updates["table"], state)

    return jax.lax.scan(step, (theta, tx.init({"table": theta})), grads)[1]


def moments(states: Any) -> tuple[np.ndarray, np.ndarray]:
    """Row and col of the only table after each step."""
    row, col = optax.tree.get(states, "tables")["table"]
    return row, col


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def gradients(
    shape: tuple[int, ...], steps: int, sparse: bool = False, seed: int = 1
) -> np.ndarray:
    """Gradients whose tokens and columns differ by orders of magnitude.

    With `sparse`, a step reaches few of the tokens, some of them more often than
    others.
    """
    rng = np.random.default_rng(seed)
    tokens = int(np.argmax(shape))
    grads = rng.standard_normal((steps, *shape))
    for axis, size in enumerate(shape):
        factor = np.exp(rng.standard_normal(size))
        grads *= np.expand_dims(factor, [i for i in range(len(shape)) if i != axis])
    if sparse:
        often = 0.5 / np.arange(1, shape[tokens] + 1)
        reached = rng.random((steps, shape[tokens])) < often
        others = [1 + i for i in range(len(shape)) if i != tokens]
        grads *= np.expand_dims(reached, others)
    return grads.astype(np.float32)


def assert_tokens_close(
    actual: np.ndarray, expected: np.ndarray, bound: float = BOUND
) -> None:
    tokens = int(np.argmax(expected.shape))
    others = tuple(a for a in range(expected.ndim) if a != tokens)
    error = np.sum((np.float64(actual) - expected) ** 2, axis=others)
    assert np.all(error <= bound**2 * np.sum(expected**2, axis=others))


def assert_follows_the_oracle(theta: Any, grads: Any, **options: Any) -> None:
    """Compares the parameters and the statistics after all steps."""
    oracle = Oracle(theta, LEARNING_RATE, **options)
    thetas, _, states = run(ember(**options), theta, grads)
    chex.assert_type([thetas, *moments(states)], np.float32)
    for grad in grads:
        oracle.step(grad)
    assert_tokens_close(thetas[-1], oracle.theta)
    for found, expected in zip(moments(states), (oracle.row, oracle.col), strict=True):
        np.testing.assert_allclose(found[-1], expected, rtol=BOUND, atol=TINY)


# A worked example. The squares of this gradient are [[1, 4], [9, 16], [0, 0]]. Its row
# means are [2.5, 12.5, 0], its column means are [10/3, 20/3], and those have mean 5.
# vhat = row col / 5 = [[5/3, 10/3], [25/3, 50/3], [0, 0]].
GRAD = np.float32([[1, 2], [3, -4], [0, 0]])
# 1/sqrt(5/3), 2/sqrt(10/3), 3/sqrt(25/3), -4/sqrt(50/3)
UPDATE = np.array([[0.7745967, 1.0954451], [1.0392305, -0.9797959], [0, 0]])


def test_worked_example() -> None:
    # A constant gradient has a constant update: 1 - b2^t cancels at every step.
    _, updates, states = run(scale_by_ember(), GRAD, np.stack([GRAD] * 10))
    np.testing.assert_allclose(updates, np.stack([UPDATE] * 10), rtol=1e-6)
    row, col = moments(states)
    np.testing.assert_allclose(row[0], [0.0025, 0.0125, 0], rtol=1e-6)
    np.testing.assert_allclose(col[0], [0.01 / 3, 0.02 / 3], rtol=1e-6)


def test_worked_example_with_eps() -> None:
    # 1/(sqrt(5/3) + 1), 2/(sqrt(10/3) + 1), 3/(sqrt(25/3) + 1), -4/(sqrt(50/3) + 1)
    expected = [[0.4364917, 0.7077788], [0.7718529, -0.7870169], [0, 0]]
    updates = run(scale_by_ember(eps=1.0), GRAD, GRAD[None])[1]
    np.testing.assert_allclose(updates[0], expected, rtol=1e-6)


def test_worked_example_with_weight_decay() -> None:
    # 2 - 0.01 (update + 0.5 * 2); tokens without gradient decay as well.
    theta = np.full_like(GRAD, 2)
    thetas = run(ember(weight_decay=0.5), theta, GRAD[None])[0]
    np.testing.assert_allclose(thetas[0], 2 - 0.01 * (UPDATE + 1), rtol=1e-6)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_shape(shape: tuple[int, ...], sparse: bool) -> None:
    theta, grads = normal(shape), gradients(shape, 100, sparse)
    assert_follows_the_oracle(theta, grads, weight_decay=0.1)


@pytest.mark.parametrize("b2", [0.0, 0.5, 0.9999])
def test_every_b2(b2: float) -> None:
    grads = gradients(VD, 100, sparse=True)
    grads[0] *= 1e4  # a b2 of 0 forgets it
    oracle = Oracle(np.zeros(VD), b2=b2)
    _, updates, _ = run(scale_by_ember(b2=b2), normal(VD), grads)
    for grad, update in zip(grads, updates, strict=True):
        oracle.step(grad)
        np.testing.assert_allclose(update, oracle.update, rtol=BOUND)


@pytest.mark.parametrize("vocab_axis", [0, -1])
def test_tokens_on_the_given_axis(vocab_axis: int) -> None:
    theta, grads = normal((4, 5, 6)), gradients((4, 5, 6), 20)
    oracle = Oracle(theta, vocab_axis=vocab_axis)
    _, updates, states = run(scale_by_ember(vocab_axis=vocab_axis), theta, grads)
    for grad, update in zip(grads, updates, strict=True):
        oracle.step(grad)
        np.testing.assert_allclose(update, oracle.update, rtol=BOUND)
    row, col = moments(states)
    np.testing.assert_allclose(row[-1], oracle.row, rtol=BOUND)
    np.testing.assert_allclose(col[-1], oracle.col, rtol=BOUND)


@pytest.mark.parametrize("b2", [0.95, 0.999])
def test_tokens_without_gradient_for_5000_steps(b2: float) -> None:
    theta, grads = normal(VD), gradients(VD, 5100, sparse=True)
    grads[50:5050, :8] = 0
    oracle = Oracle(theta, LEARNING_RATE, b2=b2)
    thetas, updates, states = run(ember(b2=b2), theta, grads)
    row, _ = moments(states)
    for t, grad in enumerate(grads):
        oracle.step(grad)
        if t % 100 == 49:  # before the gap, in it and after it
            assert_tokens_close(thetas[t], oracle.theta, 4e-6)
            # Each of n steps rounds by up to 6e-8, at random: 6e-8 sqrt(n) is 4e-6. A
            # bias of 1e-8 a step, as of 1 - float32(0.999), would add up to 5e-5.
            np.testing.assert_allclose(row[t], oracle.row, rtol=1e-5, atol=TINY)
    chex.assert_tree_all_finite(updates)


def rounding(dtype: Any) -> tuple[float, float]:
    """Largest relative and absolute error of rounding to a dtype."""
    info = jnp.finfo(dtype)
    return float(info.eps) / 2, float(info.smallest_subnormal) / 2


every_half = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])


@every_half
def test_half_precision_rounds_the_update_once(dtype: Any) -> None:
    grads = gradients(VD, 100, sparse=True).astype(dtype)
    oracle = Oracle(np.zeros(VD))
    _, updates, states = run(scale_by_ember(), normal(VD).astype(dtype), grads)
    chex.assert_type([updates, *moments(states)], [dtype, jnp.float32, jnp.float32])
    relative, absolute = rounding(dtype)
    for grad, update in zip(grads, updates, strict=True):
        oracle.step(grad)
        np.testing.assert_allclose(
            np.float64(update), oracle.update, rtol=relative + BOUND, atol=absolute
        )
    row, col = moments(states)
    np.testing.assert_allclose(row[-1], oracle.row, rtol=BOUND)
    np.testing.assert_allclose(col[-1], oracle.col, rtol=BOUND)


@every_half
def test_half_precision_parameters_stay_within_their_rounding(dtype: Any) -> None:
    # One step from theta to the next one, with unit roundoff u: the update, the decay
    # factor, the decay, their sum, the learning rate and the product with it are
    # rounded, and then the new parameter. To first order
    #   |error| <= 6 u lr (|update| + weight_decay |theta|) + u |next theta|
    # The oracle restarts from the rounded parameters; 7 covers the higher orders.
    theta = normal(VD).astype(dtype)
    grads = gradients(VD, 100, sparse=True).astype(dtype)
    oracle = Oracle(theta, LEARNING_RATE, weight_decay=0.1)
    thetas, _, _ = run(ember(weight_decay=0.1), theta, grads)
    relative, absolute = rounding(dtype)
    for grad, theta in zip(grads, np.asarray(thetas, np.float64), strict=True):
        before = np.abs(oracle.theta)
        oracle.step(grad)
        step = LEARNING_RATE * (np.abs(oracle.update) + 0.1 * before)
        bound = relative * (7 * step + np.abs(oracle.theta)) + 7 * absolute
        assert np.all(np.abs(theta - oracle.theta) <= bound)
        oracle.theta = theta
