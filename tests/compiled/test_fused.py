"""The fused variant: against NumPy, the kernel against plain JAX, by the TPU compiler.

The kernel runs in interpret mode: nothing here has run on a TPU.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from ember_optax.experimental import fused
from ember_optax.experimental.fused import _fused, _kernel

# Less than a block, several of 1024 rows with a rest, an odd number of blocks, and
# rows so wide that a block has 128 of them.
SHAPES = [(5, 3), (2500, 100), (2100, 7), (300, 4096)]
LIMIT = 1e38  # of sums of squares; no test comes near


class Oracle:
    """The variant in float64, from its equations and not from the library.

    row_i = b2 row_i + (1 - b2) mean_j G_ij^2
    u_ij = G_ij / (sqrt(row_i / (1 - b2^t) c_j) + eps), between its bounds
    |u_ij| <= 8 sqrt(mean_j G_ij^2 (1 - b2^t) / row_i)
    theta_ij -= lr (u_ij + weight_decay theta_ij)
    c_j = col_j / mean(col), or 1 while col is 0
    col_j = b2 col_j + (1 - b2) mean_i G_ij^2
    """

    def __init__(self, theta: np.ndarray) -> None:
        self.theta = np.array(theta, np.float64)
        self.row, self.col = (np.zeros(n) for n in theta.shape)
        self.t = 0

    def step(
        self, grad: np.ndarray, lr: float, b2: float, eps: float, decay: float
    ) -> None:
        g = np.array(grad, np.float64)
        self.t += 1
        self.row = b2 * self.row + (1 - b2) * (g**2).mean(axis=1)
        factor = self.col / self.col.mean() if self.col.any() else 1 + self.col
        root = np.sqrt(np.outer(self.row / (1 - b2**self.t), factor))
        moves = root > 0
        update = np.divide(g, root + eps, out=np.zeros_like(g), where=moves)
        row = np.where(self.row > 0, self.row, 1)
        bound = 8 * np.sqrt((g**2).mean(axis=1) * (1 - b2**self.t) / row)
        update = np.clip(update, -bound[:, None], bound[:, None])
        self.theta -= lr * (update + decay * self.theta)
        self.col = b2 * self.col + (1 - b2) * (g**2).mean(axis=0)


def make_grads(shape: tuple[int, int], n: int, seed: int = 0) -> np.ndarray:
    """Gradients of rows and columns of many sizes, of which some rows are zero."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.exp(rng.normal(size=size)) for size in shape)
    seen = rng.random((n, shape[0], 1)) < 0.7
    grads = rng.normal(size=(n, *shape)) * np.outer(rows, columns) * seen
    return grads.astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 3), (40, 8)])
@pytest.mark.parametrize(
    "options", [{}, {"b2": 0.9, "eps": 1e-3, "weight_decay": 0.1}], ids=["", "options"]
)
def test_plain_step_is_the_oracle(
    shape: tuple[int, int], options: dict[str, float]
) -> None:
    theta = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    oracle, table = Oracle(theta), jnp.asarray(theta)
    state = fused.init(table)
    step = jax.jit(functools.partial(fused.apply, **options))
    b2, eps = options.get("b2", 0.999), options.get("eps", 1e-8)
    for t, grad in enumerate(make_grads(shape, 60)):
        lr = 0.1 / (t + 1)
        table, state = step(table, state, jnp.asarray(grad), learning_rate=lr)
        oracle.step(grad, lr, b2, eps, options.get("weight_decay", 0.0))
    np.testing.assert_allclose(table, oracle.theta, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(state.row, oracle.row, rtol=2e-6)
    np.testing.assert_allclose(state.col, oracle.col, rtol=2e-6)
    assert state.count == oracle.t


def test_hyperparameters_may_be_traced_and_scheduled() -> None:
    grads = jnp.asarray(make_grads((40, 8), 3))
    table = jnp.ones((40, 8))

    def run(learning_rate: Any, b2: Any, eps: Any, weight_decay: Any) -> jax.Array:
        trained, state = table, fused.init(table)
        for grad in grads:
            trained, state = fused.apply(
                *(trained, state, grad),
                learning_rate=learning_rate,
                b2=b2,
                eps=eps,
                weight_decay=weight_decay,
            )
        return trained

    rest = 0.99, 1e-3, 0.1
    known = jax.jit(lambda: run(0.1, *rest))()
    traced = jax.jit(run)(*map(jnp.float32, (0.1, *rest)))
    np.testing.assert_allclose(traced, known, rtol=2e-6)

    state = fused.init(table)._replace(count=jnp.int32(5))
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    scheduled, _ = fused.apply(table, state, grads[0], learning_rate=schedule)
    constant, _ = fused.apply(table, state, grads[0], learning_rate=0.5)
    np.testing.assert_array_equal(scheduled, constant)


def test_statistics_are_those_of_the_exact_rule() -> None:
    grads = jnp.asarray(make_grads((40, 8), 20))
    table = jnp.ones((40, 8))
    tx = ember_optax.ember(1e-2)
    exact, state = tx.init(table), fused.init(table)
    for grad in grads:
        _, exact = tx.update(grad, exact, table)
        table, state = fused.apply(table, state, grad, learning_rate=1e-2)
    ((path, moments),) = exact[0].tables.items()
    del path
    np.testing.assert_allclose(state.row, moments.row, rtol=1e-6)
    np.testing.assert_allclose(state.col, moments.col, rtol=1e-6)


def test_with_a_standing_column_factor_the_step_is_exact() -> None:
    # Every gradient is the last one scaled, so col / mean(col) never changes.
    grad, table = jnp.asarray(make_grads((40, 8), 1)[0]), jnp.ones((40, 8))
    tx = ember_optax.ember(1e-2)
    exact, state = tx.init(table), fused.init(table)
    for t in range(1, 10):
        updates, exact = tx.update(t * grad, exact, table)
        moved, state = fused.apply(table, state, t * grad, learning_rate=1e-2)
        if t > 1:
            np.testing.assert_allclose(moved - table, updates, rtol=1e-4, atol=1e-6)


def test_rows_and_columns_without_gradient_stay() -> None:
    table, grads = jnp.ones((40, 8)), make_grads((40, 8), 5)
    grads[:, 7] = 0
    grads[:, :, 3] = 0
    state = fused.init(table)
    for grad in [np.zeros_like(grads[0]), *grads]:
        table, state = fused.apply(
            table, state, jnp.asarray(grad), learning_rate=0.1, eps=0.0
        )
    assert np.isfinite(table).all()
    np.testing.assert_array_equal(table[7], 1)
    np.testing.assert_array_equal(table[:, 3], 1)
    seen = grads.any(axis=(0, 2))
    assert (table[seen] != 1).sum() == 7 * seen.sum()


def test_the_step_of_a_column_that_wakes_up_is_bounded() -> None:
    grad, table = jnp.asarray(make_grads((40, 8), 1)[0]), jnp.ones((40, 8))
    grad = jnp.where(grad == 0, 1, grad)
    asleep = grad.at[:, 3].multiply(1e-6)
    tx = ember_optax.ember(1.0)
    exact, state = tx.init(table), fused.init(table)
    largest, bounds = [], []
    for t, gradient in enumerate((asleep, asleep, grad, grad), start=1):
        updates, exact = tx.update(gradient, exact, table)
        moved, state = fused.apply(table, state, gradient, learning_rate=1.0)
        largest.append([float(jnp.abs(x).max()) for x in (updates, moved - table)])
        mean = jnp.mean(jnp.square(gradient), axis=1)
        bounds.append(8 * jnp.sqrt(mean * (1 - 0.999**t) / state.row))
        assert (jnp.abs(moved - table) <= 1.001 * bounds[-1][:, None]).all()
    # By its old factor it would take a step of a million.
    (_, _, (of_exact, awake), (_, after)) = largest
    assert of_exact < 40
    assert awake == pytest.approx(float(bounds[2].max()), rel=1e-3)
    assert awake < 20
    assert after < 40


def test_the_bound_leaves_usual_gradients_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, grads = jnp.ones((400, 64)), make_grads((400, 64), 20)
    tables = []
    for largest in (8.0, 1e9):
        monkeypatch.setattr(_fused, "LARGEST", largest)
        trained, state = table, fused.init(table)
        for grad in grads:
            trained, state = fused.apply(
                trained, state, jnp.asarray(grad), learning_rate=0.1
            )
        tables.append(trained)
    np.testing.assert_array_equal(*tables)


def test_a_head_is_the_transpose_of_a_table() -> None:
    grads = jnp.asarray(make_grads((40, 8), 5))
    table, head = jnp.ones((40, 8)), jnp.ones((8, 40))
    state, of_head = fused.init(table), fused.init(head, vocab_axis=1)
    for grad in grads:
        table, state = fused.apply(table, state, grad, learning_rate=0.1)
        head, of_head = fused.apply(
            head, of_head, grad.T, learning_rate=0.1, vocab_axis=-1
        )
    np.testing.assert_allclose(head.T, table, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, of_head
    )


def make_operands(shape: tuple[int, int], dtype: Any, axis: int) -> tuple[Any, ...]:
    """Table, gradient, row statistic, column root and numbers of a later step."""
    rng = np.random.default_rng(0)
    theta, grad = rng.normal(size=shape), make_grads(shape, 1)[0]
    row, col = (rng.random(n) + 0.1 for n in shape)
    col_root = _kernel.column_root(jnp.float32(col), jnp.float32(0.5))
    numbers = _kernel.Numbers(*map(jnp.float32, (0.99, 1e-2, 1e-8, 0.1, 0.1, 5.0)))
    tables = (jnp.asarray(x if axis == 0 else x.T, dtype) for x in (theta, grad))
    return *tables, jnp.float32(row), col_root, numbers


def assert_equal(actual: _kernel.Stepped, expected: _kernel.Stepped) -> None:
    assert actual.table.dtype == expected.table.dtype
    in_float32 = actual.table.dtype == jnp.float32
    rtol, atol = (1e-6, 1e-6) if in_float32 else (2**-7, 1e-4)  # bfloat16's last bit
    tables = (jnp.float32(x.table) for x in (actual, expected))
    np.testing.assert_allclose(*tables, rtol=rtol, atol=atol)
    np.testing.assert_allclose(actual.row, expected.row, rtol=1e-6)
    np.testing.assert_allclose(actual.col_sums, expected.col_sums, rtol=2e-6)
