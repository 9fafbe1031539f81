"""Random gradients of every shape, dtype and scale against the float64 oracle.

Every element of every update must be within the rounding of its dtype. Where float32
cannot hold the statistics, updates and state must be finite.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from tests.oracle import Oracle

STEPS = 4
DTYPES = ("float32", "bfloat16", "float16")
SCHEDULES = {
    "1 - t^-0.8": ember_optax.adafactor_decay(),
    "0 to 0.999": optax.linear_schedule(0.0, 0.999, 3),
}
B2S = (0.0, 0.5, 0.9, 0.999, 0.99999, *SCHEDULES)
EPSILONS = (1e-30, 1e-8, 1.0)
KINDS = ("plain", "zero rows", "zero columns", "rows", "columns", "steps", "outlier")
SHAPES = (
    *((33, 8), (5, 17), (8, 8), (1, 3), (33, 2, 3), (3, 17, 2), (17, 3, 2, 2)),
    *((2, 3, 5, 8),),
)
LARGEST_MEAN_SQUARE = 1e30  # rows and columns above it take no part in a step


class Case(NamedTuple):
    """Gradients of all steps and the settings of the optimizer."""

    grads: np.ndarray  # [STEPS, *shape]
    b2: float | str  # a number or a key of SCHEDULES
    eps: float
    kind: str


def cases(n: int, seed: int) -> Iterator[Case]:
    """Yields random cases; those that share a compilation follow each other."""
    rng = np.random.default_rng(seed)
    groups = list(itertools.product(SHAPES, DTYPES, B2S, EPSILONS))
    rng.shuffle(groups)
    groups = groups[: max(1, min(len(groups), n // 8))]
    for i in range(n):
        shape, dtype, b2, eps = groups[i * len(groups) // n]
        kind = KINDS[rng.integers(len(KINDS))]
        yield Case(gradients(rng, tuple(shape), dtype, kind), b2, eps, kind)


def gradients(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str
) -> np.ndarray:
    """Draws gradients of a scale from 1e-30 to 1e30, or what float16 can hold."""
    tokens = int(np.argmax(shape))
    by_row = [size if a == tokens else 1 for a, size in enumerate(shape)]
    by_column = [1 if a == tokens else size for a, size in enumerate(shape)]
    largest = 4 if dtype == "float16" else 30
    grads = rng.standard_normal((STEPS, *shape)) * 10 ** rng.uniform(-largest, largest)
    match kind:
        case "zero rows":
            grads *= rng.random(by_row) < 0.5
        case "zero columns":
            grads *= rng.random(by_column) < 0.5
        case "rows":
            grads *= 10 ** rng.uniform(-6, 6, by_row)
        case "columns":
            grads *= 10 ** rng.uniform(-6, 6, by_column)
        case "steps":
            grads *= 10 ** rng.uniform(-6, 6, (STEPS, *[1] * len(shape)))
        case "outlier":
            place = tuple(rng.integers(n) for n in grads.shape)
            grads[place] *= 10 ** rng.uniform(0, 20)
    limit = float(jnp.finfo(dtype).max)
    return np.clip(grads, -limit, limit).astype(jnp.dtype(dtype))


@functools.lru_cache(maxsize=64)
def compiled(shape: tuple[int, ...], dtype: str, b2: float | str, eps: float) -> Any:
    """Builds a function from all gradients to all updates, rows and columns."""
    tx = ember_optax.scale_by_ember(SCHEDULES.get(b2, b2), eps)

    def run(grads: jax.Array) -> Any:
        def step(state: Any, grad: jax.Array) -> Any:
            update, state = tx.update({"table": grad}, state)
            return state, (update["table"], *state.tables["table"])

        return jax.lax.scan(step, tx.init({"table": grads[0]}), grads)[1]

    return jax.jit(run)


def problem(case: Case) -> str | None:
    """Describes what is wrong with the updates of a case, if anything is."""
    shape, dtype = case.grads.shape[1:], case.grads.dtype
    run = compiled(shape, str(dtype), case.b2, case.eps)
    updates, rows, cols = jax.device_get(run(case.grads))
    if not (np.isfinite(rows).all() and np.isfinite(cols).all()):
        return "the state is not finite"
    grads = np.asarray(case.grads, np.float64)
    expected = oracle_updates(grads, case)
    info = jnp.finfo(dtype)
    # Where the update of the oracle does not fit into the dtype, it is infinite.
    fits = np.abs(expected) < 0.99 * float(info.max)
    if not np.isfinite(updates[fits]).all():
        return "an update is not finite"
    if not float32_holds_statistics(grads, case.b2):
        return None
    tiny = info.tiny if dtype == "float32" else info.smallest_subnormal
    bound = 1.01 * float(tiny) + (3e-6 + float(info.eps) / 2) * np.abs(expected)
    error = np.abs(np.asarray(updates, np.float64) - expected)
    if np.any(error[fits] > bound[fits]):
        return f"an update is off by {error[fits].max():.2g}"
    return None


def oracle_updates(grads: np.ndarray, case: Case) -> np.ndarray:
    b2 = decays(case.b2).__getitem__
    oracle = Oracle(np.zeros(grads.shape[1:]), b2=b2, eps=case.eps)
    updates = []
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for grad in grads:
            oracle.step(grad)
            updates.append(oracle.update)
    return np.stack(updates)


@functools.cache
def decays(b2: float | str) -> list[float]:
    if isinstance(b2, str):
        return [float(SCHEDULES[b2](step)) for step in range(STEPS)]
    return [b2] * STEPS


def float32_holds_statistics(grads: np.ndarray, b2: float | str) -> bool:
    """Tells whether no square is too large, and no part of a statistic too small."""
    sizes = np.abs(grads[grads != 0])
    if not sizes.size:
        return True
    n_rows = max(grads.shape[1:])
    n_columns = math.prod(grads.shape[1:]) // n_rows
    part = (1 - max(decays(b2))) / max(n_rows, n_columns)
    smallest = float(jnp.finfo(jnp.float32).tiny)
    is_large_enough = sizes.min() ** 2 * part > 1e3 * smallest
    return sizes.max() ** 2 < LARGEST_MEAN_SQUARE and bool(is_large_enough)


@pytest.mark.parametrize(
    "n_cases", [64, pytest.param(10_000, marks=pytest.mark.nightly)]
)
def test_random_cases_follow_the_oracle(n_cases: int) -> None:
    wrong = [
        (found, case.grads.shape, str(case.grads.dtype), *case[1:])
        for case in cases(n_cases, seed=1)
        if (found := problem(case))
    ]
    assert not wrong
