"""Ember against the NumPy oracle, and against numbers worked out by hand.

How close is close:

- Parameters: every token's vector within 2e-6 of its own length. Element by element
  would be unfair, for an element may come to lie next to zero; the length of the whole
  table would be lenient, for wrong rare tokens would drown in it.
- Updates and statistics: every element within 2e-6 of itself. An update is a gradient
  times something positive and a statistic a sum of squares; nothing cancels in either.
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
TINY = 2e-38  # what decays below float32's normal numbers may be flushed to zero
LEARNING_RATE = 1e-2
SHAPES = {"VD": (48, 10), "DV": (10, 48), "VLP": (48, 3, 4), "KVD": (3, 48, 4)}

# One optimizer for the same settings, so that it is compiled once for all of them.
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
        updates = updates["table"]
        theta = theta + updates
        return (theta, state), (theta, updates, state)

    init = theta, tx.init({"table": theta})
    return jax.lax.scan(step, init, grads)[1]


def moments(state: Any) -> tuple[np.ndarray, np.ndarray]:
    """The statistics of the only table, whatever the state is chained with."""
    row, col = optax.tree.get(state, "tables")["table"]
    return row, col


def last(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x[-1], np.float64), tree)


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def gradients(
    shape: tuple[int, ...], steps: int, sparse: bool = False, seed: int = 1
) -> np.ndarray:
    """Like those of a real table: tokens and columns differ by orders of magnitude.

    When sparse, a step reaches few of the tokens, some of them more often than others.
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


def tokens_first(table: np.ndarray) -> np.ndarray:
    longest = int(np.argmax(table.shape))
    return np.moveaxis(table, longest, 0).reshape(table.shape[longest], -1)


def assert_tokens_close(
    actual: np.ndarray, expected: np.ndarray, bound: float = BOUND
) -> None:
    """Every token's vector is within `bound` of its own length."""
    length = np.linalg.norm(tokens_first(expected), axis=1)
    error = np.linalg.norm(tokens_first(np.float64(actual) - expected), axis=1)
    assert np.all(error <= bound * length), np.max(error / length)


def assert_follows_the_oracle(
    theta: np.ndarray, grads: np.ndarray, options: dict[str, Any]
) -> None:
    """Parameters and statistics after all steps are those of the oracle."""
    oracle = Oracle(theta, LEARNING_RATE, **options)
    for grad in grads:
        oracle.step(grad)
    thetas, _, states = run(ember(**options), theta, grads)
    assert_tokens_close(thetas[-1], oracle.theta)
    row, col = last(moments(states))
    np.testing.assert_allclose(row, oracle.row, rtol=BOUND)
    np.testing.assert_allclose(col, oracle.col, rtol=BOUND)


@pytest.mark.parametrize("column_mean", ["all", "active"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_200_steps(shape: tuple[int, ...], sparse: bool, column_mean: str) -> None:
    theta, grads = normal(shape), gradients(shape, 200, sparse)
    options = {"weight_decay": 0.1, "column_mean": column_mean}
    assert_follows_the_oracle(theta, grads, options)


@pytest.mark.parametrize("b2", [0.0, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_any_b2(b2: float, sparse: bool) -> None:
    shape = SHAPES["VD"]
    theta, grads = normal(shape), gradients(shape, 200, sparse)
    oracle = Oracle(theta, b2=b2)
    _, updates, states = run(scale_by_ember(b2=b2), theta, grads)
    for grad, update in zip(grads, updates, strict=True):
        oracle.step(grad)
        np.testing.assert_allclose(update, oracle.update, rtol=BOUND)
    row, col = last(moments(states))
    np.testing.assert_allclose(row, oracle.row, rtol=BOUND, atol=TINY)
    np.testing.assert_allclose(col, oracle.col, rtol=BOUND, atol=TINY)


def test_b2_of_zero_forgets_a_large_gradient() -> None:
    theta = normal((6, 4))
    grads = gradients((6, 4), 2) * np.float32([[[1e4]], [[1]]])
    oracle = Oracle(theta, b2=0.0)
    for grad, update in zip(
        grads, run(scale_by_ember(b2=0.0), theta, grads)[1], strict=True
    ):
        oracle.step(grad)
        np.testing.assert_allclose(update, oracle.update, rtol=BOUND)


@pytest.mark.parametrize("vocab_axis", [0, 1, -1])
def test_tokens_on_the_named_axis(vocab_axis: int) -> None:
    theta, grads = normal((4, 5, 6)), gradients((4, 5, 6), 20)
    options = {"vocab_axis": vocab_axis, "column_mean": "active"}
    oracle = Oracle(theta, LEARNING_RATE, **options)
    for grad in grads:
        oracle.step(grad)
    thetas, _, states = run(ember(**options), theta, grads)
    np.testing.assert_allclose(thetas[-1], oracle.theta, rtol=1e-5, atol=1e-6)
    row, col = last(moments(states))
    np.testing.assert_allclose(row, oracle.row, rtol=BOUND)
    np.testing.assert_allclose(col, oracle.col, rtol=BOUND)


@pytest.mark.parametrize("exponent", range(-15, 16, 3))
@pytest.mark.parametrize("eps", [1e-8, 0.0])
@pytest.mark.parametrize("column_mean", ["all", "active"])
def test_gradients_of_any_scale(exponent: int, eps: float, column_mean: str) -> None:
    shape = SHAPES["VD"]
    theta = np.zeros(shape, np.float32)  # whose own digits would hide a small step's
    grads = gradients(shape, 200) * np.float32(10.0**exponent)
    options = {"eps": eps, "column_mean": column_mean}
    assert_follows_the_oracle(theta, grads, options)


@pytest.mark.parametrize("rare", [range(8), range(48)], ids=["some", "all"])
@pytest.mark.parametrize("column_mean", ["all", "active"])
@pytest.mark.parametrize("b2", [0.95, 0.999])
def test_tokens_not_seen_for_5000_steps(
    rare: range, column_mean: str, b2: float
) -> None:
    shape = SHAPES["VD"]
    theta, grads = normal(shape), gradients(shape, 5100, sparse=True)
    grads[50:5050, rare] = 0
    options = {"b2": b2, "column_mean": column_mean}
    oracle = Oracle(theta, LEARNING_RATE, **options)
    thetas, updates, states = run(ember(**options), theta, grads)
    row = np.asarray(moments(states)[0])
    for t, grad in enumerate(grads):
        oracle.step(grad)
        if t % 100 == 49:  # before the gap, in it, and after it
            assert_tokens_close(thetas[t], oracle.theta)
            # Each of n steps rounds by up to 6e-8, at random: 6e-8 sqrt(n) is 4e-6. A
            # bias of 1e-8 a step, as by rounding 0.999 to float32, would be 5e-5.
            np.testing.assert_allclose(row[t], oracle.row, rtol=1e-5, atol=TINY)
    chex.assert_tree_all_finite(updates)


@pytest.mark.parametrize("column_mean", ["all", "active"])
def test_float64(column_mean: str) -> None:
    shape = SHAPES["KVD"]
    with jax.enable_x64(True):
        theta = np.float64(normal(shape))
        grads = np.float64(gradients(shape, 200, sparse=True))
        options = {"weight_decay": 0.1, "column_mean": column_mean}
        oracle = Oracle(theta, LEARNING_RATE, **options)
        for grad in grads:
            oracle.step(grad)
        thetas, _, states = run(ember(**options), theta, grads)
        chex.assert_type([thetas, *moments(states)], jnp.float64)
        assert_tokens_close(thetas[-1], oracle.theta, bound=1e-12)
        row, col = last(moments(states))
        np.testing.assert_allclose(row, oracle.row, rtol=1e-12)
        np.testing.assert_allclose(col, oracle.col, rtol=1e-12)


def rounding(dtype: Any) -> tuple[float, float]:
    """Largest relative and absolute error of rounding to a dtype."""
    info = jnp.finfo(dtype)
    return float(info.eps) / 2, float(info.smallest_subnormal) / 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("column_mean", ["all", "active"])
def test_low_precision_rounds_the_update_and_nothing_else(
    dtype: Any, column_mean: str
) -> None:
    shape = SHAPES["VD"]
    theta, grads = normal(shape), gradients(shape, 200, sparse=True)
    theta, grads = theta.astype(dtype), grads.astype(dtype)
    oracle = Oracle(theta, column_mean=column_mean)
    _, updates, states = run(scale_by_ember(column_mean=column_mean), theta, grads)
    chex.assert_type([updates, *moments(states)], [dtype, jnp.float32, jnp.float32])
    relative, absolute = rounding(dtype)
    for grad, update in zip(grads, updates, strict=True):
        oracle.step(grad)
        np.testing.assert_allclose(
            np.float64(update), oracle.update, rtol=relative + BOUND, atol=absolute
        )
    row, col = last(moments(states))
    np.testing.assert_allclose(row, oracle.row, rtol=BOUND)
    np.testing.assert_allclose(col, oracle.col, rtol=BOUND)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_low_precision_parameters_stay_within_their_rounding(
    dtype: Any, weight_decay: float
) -> None:
    # One step from theta to the next one, with unit roundoff u: the update, the decay
    # factor, the decay, their sum, the learning rate and the product with it are
    # rounded, and then the new parameter. To first order
    #   |error| <= 6 u lr (|update| + weight_decay |theta|) + u |next theta|
    # The oracle restarts from the rounded parameters; 7 pays for the higher orders.
    shape = SHAPES["VD"]
    theta, grads = normal(shape), gradients(shape, 200, sparse=True)
    theta, grads = theta.astype(dtype), grads.astype(dtype)
    oracle = Oracle(theta, LEARNING_RATE, weight_decay=weight_decay)
    thetas, _, _ = run(ember(weight_decay=weight_decay), theta, grads)
    relative, absolute = rounding(dtype)
    for grad, theta in zip(grads, np.asarray(thetas, np.float64), strict=True):
        before = np.abs(oracle.theta)
        oracle.step(grad)
        step = LEARNING_RATE * (np.abs(oracle.update) + weight_decay * before)
        bound = relative * (7 * step + np.abs(oracle.theta)) + 7 * absolute
        assert np.all(np.abs(theta - oracle.theta) <= bound)
        oracle.theta = theta


@pytest.mark.parametrize("column_mean", ["all", "active"])
@pytest.mark.parametrize("b2", [0.0, 0.999])
def test_no_nan_without_eps(b2: float, column_mean: str) -> None:
    theta = normal((6, 4))
    grads = gradients((6, 4), 5)
    grads[:, 2], grads[:, :, 1], grads[0], grads[3] = 0, 0, 0, 0
    tx = scale_by_ember(b2=b2, eps=0.0, column_mean=column_mean)
    oracle = Oracle(theta, b2=b2, eps=0.0, column_mean=column_mean)
    for grad, update in zip(grads, run(tx, theta, grads)[1], strict=True):
        oracle.step(grad)
        np.testing.assert_allclose(update, oracle.update, rtol=BOUND)
