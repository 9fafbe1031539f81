"""All statistics, on a mesh, in bfloat16, donated, and with bad input."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.geometry import instrument as geometry
from tests.benchmarks.geometry.made_up import (
    EVERY_ROW,
    KEY,
    D,
    V,
    sparse_gradients,
    text,
)

# Read as users may read them, compiled.
factorization_error = jax.jit(geometry.factorization_error, static_argnames="quantiles")
random_walk = jax.jit(geometry.random_walk)
ray_cosine = jax.jit(geometry.ray_cosine)
ray_share = jax.jit(geometry.ray_share)


def everything(grads: Any, updates: Any, logits: Any, targets: Any) -> Any:
    """All states after some steps."""
    rows = jnp.array([1, 7, V - 1])
    table = grads[0]
    init = (
        geometry.history_init(table, rows, 3),
        geometry.second_moment_init(table, rows),
        geometry.steps_init(table),
        geometry.frequencies_init(V),
    )

    def step(states: Any, batch: Any) -> Any:
        history, moment, steps, frequencies = states
        grad, update, logits, targets = batch
        states = (
            geometry.history_update(history, grad),
            geometry.second_moment_update(moment, grad),
            geometry.steps_update(steps, update, grad),
            geometry.frequencies_update(frequencies, logits, targets),
        )
        return states, None

    return jax.lax.scan(step, init, (grads, updates, logits, targets))[0]


def batches(dtype: Any) -> Any:
    """Arguments of `everything`, with numbers that bfloat16 has."""
    grads, (logits, targets) = sparse_gradients(4), text(48)
    exact = (jnp.asarray(x, jnp.bfloat16) for x in (grads, -grads, logits))
    return *(x.astype(dtype) for x in exact), jnp.asarray(targets)


@functools.cache
def everything_in_float32() -> Any:
    return jax.device_get(jax.jit(everything)(*batches(jnp.float32)))


def assert_same(actual: Any, rtol: float) -> None:
    expected = jax.tree.leaves(everything_in_float32())
    for a, e in zip(jax.tree.leaves(actual), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_on_a_mesh(mode: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(mode, mode))
    table = P(None, "x", "y")
    specs = table, table, P(None, "y", "x"), P(None, "y")
    with jax.set_mesh(mesh):
        shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
        args = jax.device_put(batches(jnp.float32), shardings)
        actual = jax.jit(everything)(*args)
    assert_same(actual, rtol=2e-5)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(actual))


def test_statistics_are_float32() -> None:
    args = batches(jnp.bfloat16)
    states = jax.jit(everything)(*args)
    types = {x.dtype for x in jax.tree.leaves(states)}
    assert types == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert_same(states, rtol=1e-5)
    points, dense = args[0], jnp.square(args[0][0])
    read = (
        ray_share(points),
        ray_cosine(points),
        random_walk(KEY, points),
        *factorization_error(dense, dense[0]),
    )
    assert {x.dtype for x in read} == {jnp.dtype("float32")}


def test_states_can_be_donated() -> None:
    rows = jnp.arange(3)
    states = (
        geometry.history_init(TABLE, rows, 2),
        geometry.second_moment_init(TABLE, rows),
        geometry.steps_init(TABLE),
        geometry.frequencies_init(V),
    )
    shapes = jax.tree.map(jnp.shape, states)
    step = jax.jit(lambda x: jax.tree.map(jnp.negative, x), donate_argnums=0)
    assert jax.tree.map(jnp.shape, step(states)) == shapes
    assert not rows.is_deleted()


TABLE = jnp.zeros((V, D))
BAD = {
    "no columns": (lambda: geometry.history_init(TABLE[0], EVERY_ROW, 1), "rows and"),
    "rows of floats": (
        lambda: geometry.second_moment_init(TABLE, TABLE[:, 0]),
        r"float32\[40\].*integers",
    ),
    "no lags": (lambda: geometry.history_init(TABLE, EVERY_ROW, 0), "at least 1"),
    "transposed gradients": (
        lambda: geometry.history_update(
            geometry.history_init(TABLE, EVERY_ROW, 1), TABLE.T
        ),
        r"\(40,\).*\(16,\).*transpose",
    ),
    "transposed steps": (
        lambda: geometry.steps_update(geometry.steps_init(TABLE), TABLE.T, TABLE.T),
        r"\(16,\).*\(40,\).*transpose",
    ),
    "columns": (lambda: geometry.factorization_error(TABLE, TABLE[:, 0]), "col has"),
    "one point": (lambda: geometry.ray_share(TABLE[None]), "two times"),
    "one row": (lambda: geometry.ray_cosine(TABLE), "two times"),
    "another vocabulary": (
        lambda: geometry.frequencies_update(
            geometry.frequencies_init(V), TABLE, jnp.zeros(V, jnp.int32)
        ),
        r"\(40, 16\).*\(40, 40\)",
    ),
    "other counts": (
        lambda: geometry.frequency_error(
            geometry.frequencies_init(V), jnp.zeros(D), jnp.array([1])
        ),
        r"\(16,\).*\(40,\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
