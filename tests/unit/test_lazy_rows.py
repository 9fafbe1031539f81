"""Lazy rows: decay of the batch, row-wise rules, memory and errors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ember_optax import lazy
from tests.unit.test_lazy import (
    LEARNING_RATE,
    error_of_rows,
    every_decay,
    jitted,
    table_of,
    zipf,
)


def test_batch_weight_decay() -> None:
    table = jnp.full((4, 2), 3.0)
    ids, grads = jnp.array([1, 1, 2]), jnp.zeros((3, 2))
    state, step = lazy.init(table), jitted(learning_rate=0.1, batch_weight_decay=0.5)
    for _ in range(2):
        table, state = step(table, state, ids, grads)
    kept = 3 * 0.95**2
    np.testing.assert_allclose(table[:, 0], [3, kept, kept, 3], rtol=1e-6)


def row_wise(
    table: np.ndarray, ids: np.ndarray, grads: np.ndarray, direction: Any
) -> np.ndarray:
    """Float64 steps along a direction, made of the sums of squares of rows so far."""
    table, steps = np.float64(table), []
    for batch, row_grads in zip(ids, np.float64(grads), strict=True):
        dense = np.zeros_like(table)
        np.add.at(dense, batch[batch >= 0], row_grads[batch >= 0])
        steps.append(np.mean(dense**2, axis=1, keepdims=True))
        table -= direction(dense, steps)
    return table


def test_without_columns_each_row_has_its_own_moment() -> None:
    (ids, grads), b2 = zipf(100), 0.9

    def direction(dense: np.ndarray, squares: list[np.ndarray]) -> np.ndarray:
        t = len(squares)
        weights = (1 - b2) * b2 ** np.arange(t - 1, -1, -1)
        vhat = np.tensordot(weights, squares, 1) / (1 - b2**t)
        return 0.1 * np.divide(dense, np.sqrt(vhat), where=dense != 0, out=0 * dense)

    table, state = jnp.asarray(table_of()), lazy.init(table_of())
    step = jitted(learning_rate=0.1, b2=b2, factored=False)
    for batch in zip(ids, grads, strict=True):
        table, state = step(table, state, *batch)
    assert error_of_rows(table, row_wise(table_of(), ids, grads, direction)) < 2e-6
    np.testing.assert_array_equal(state.col, 0)


def test_without_columns_and_forgetting_it_is_row_wise_adagrad() -> None:
    ids, grads = zipf(300)

    def direction(dense: np.ndarray, squares: list[np.ndarray]) -> np.ndarray:
        total = np.sqrt(np.sum(squares, axis=0))
        return 0.1 * np.divide(dense, total, where=dense != 0, out=0 * dense)

    table, state = jnp.asarray(table_of()), lazy.init(table_of())
    step = jitted(
        learning_rate=lambda count: 0.1 / jnp.sqrt(jnp.float32(count) + 1),
        b2=1 - 1e-9,
        factored=False,
    )
    for batch in zip(ids, grads, strict=True):
        table, state = step(table, state, *batch)
    assert error_of_rows(table, row_wise(table_of(), ids, grads, direction)) < 2e-6


def compile_training(rows: int, n: int, width: int, weight_decay: float) -> Any:
    """Compiles a forward pass, a backward pass and a step, with the table donated."""

    def train(table: Any, state: Any, ids: Any) -> Any:
        def loss(rows: jax.Array) -> jax.Array:
            return jnp.sum(rows**2) + jnp.sum(jnp.sin(rows))

        value, grads = jax.value_and_grad(loss)(lazy.lookup(table, state, ids))
        options = {"learning_rate": 1e-2, "weight_decay": weight_decay}
        return lazy.update(table, state, ids, grads, **options), value

    table = jax.ShapeDtypeStruct((rows, width), jnp.float32)
    init = functools.partial(lazy.init, weight_decay=weight_decay > 0)
    ids = jax.ShapeDtypeStruct((n,), jnp.int32)
    jitted = jax.jit(train, donate_argnums=(0, 1))
    return jitted.lower(table, jax.eval_shape(init, table), ids).compile()


@pytest.mark.parametrize(
    ("n", "width", "weight_decay"), [(8192, 32, 0.0), (1024, 512, 0.1)]
)
def test_no_temporary_of_the_size_of_the_table(
    n: int, width: int, weight_decay: float
) -> None:
    small, large = (
        compile_training(rows, n, width, weight_decay).memory_analysis()
        for rows in (10**5, 10**7)
    )
    # A V-sized vector of float32 would be 40 MB here.
    assert large.temp_size_in_bytes == small.temp_size_in_bytes < 8 * 4 * n * width
    # Everything but the ids is updated in place.
    assert large.argument_size_in_bytes - large.alias_size_in_bytes == 4 * n


@every_decay
def test_table_and_state_can_be_donated(weight_decay: float) -> None:
    table, (ids, grads) = jnp.asarray(table_of()), zipf(2)
    state = lazy.init(table, weight_decay=weight_decay > 0)
    options = {"learning_rate": LEARNING_RATE, "weight_decay": weight_decay}
    step = jax.jit(functools.partial(lazy.update, **options), donate_argnums=(0, 1))
    for batch in zip(ids, grads, strict=True):
        before, (table, state) = (table, state), step(table, state, *batch)
        assert all(x.is_deleted() for x in jax.tree.leaves(before))


ERRORS = {
    "not a table": (lambda t, s: lazy.init(jnp.ones(3)), r"\(3,\).*needs a table"),
    "integers": (lambda t, s: lazy.init(jnp.ones((3, 2), int)), "int32.*floating"),
    "other state": (
        lambda t, s: update(t[:3], s, jnp.array([1]), jnp.ones((1, 2))),
        r"row of \(4,\).*\(3, 2\).*lazy.init",
    ),
    "not a state": (lambda t, s: lazy.lookup(t, None, jnp.array([1])), "LazyState"),
    "floating ids": (
        lambda t, s: lazy.lookup(t, s, jnp.array([1.0])),
        "ids have the dtype float32.*integers",
    ),
    "shape of the gradients": (
        lambda t, s: update(t, s, jnp.array([1, 2]), jnp.ones((3, 2))),
        r"\(3, 2\).*need \(2, 2\).*lazy.lookup",
    ),
    "dtype of the gradients": (
        lambda t, s: update(t, s, jnp.array([1]), jnp.ones((1, 2), int)),
        "row_grads have the dtype int32",
    ),
    "decay without its state": (
        lambda t, s: update(t, s, jnp.array([1]), jnp.ones((1, 2)), weight_decay=0.1),
        r"weight_decay is 0.1.*init\(table, weight_decay=True\).*batch_weight_decay",
    ),
    "both kinds of decay": (
        lambda t, s: update(
            t,
            lazy.init(t, weight_decay=True),
            jnp.array([1]),
            jnp.ones((1, 2)),
            batch_weight_decay=0.1,
        ),
        "batch_weight_decay is 0.1.*use weight_decay",
    ),
    "negative decay": (
        lambda t, s: update(
            t, s, jnp.array([1]), jnp.ones((1, 2)), batch_weight_decay=-0.1
        ),
        "batch_weight_decay must not be negative, got -0.1",
    ),
    "b2": (
        lambda t, s: update(t, s, jnp.array([1]), jnp.ones((1, 2)), b2=1.0),
        r"b2 must be in \[0, 1\), got 1.0",
    ),
}
update = functools.partial(lazy.update, learning_rate=1e-2)


@pytest.mark.parametrize("name", ERRORS)
def test_mistakes_raise(name: str) -> None:
    call, message = ERRORS[name]
    table = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=message):
        call(table, lazy.init(table))
