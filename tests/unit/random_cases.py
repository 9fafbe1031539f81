r"""Random gradients of every shape, dtype and scale against the float64 oracle.

    python -m tests.unit.random_cases --cases=10000

A case is exact if every element of every update is within the rounding of its dtype.
It is exempt where float32 cannot hold the statistics. There updates and state must be
finite, and where squares underflow, updates must not be much larger than they should.
"""

import argparse
import collections
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import ember_optax
from tests.oracle import Oracle

STEPS = 4
DTYPES = ("float32", "bfloat16", "float16")
SCHEDULES = {
    "1 - t^-0.8": ember_optax.adafactor_decay(),
    "0 to 0.999": optax.linear_schedule(0.0, 0.999, 3),
}
B2S = (0.0, 0.5, 0.9, 0.999, 0.99999, *SCHEDULES)
EPSILONS = (0.0, 1e-30, 1e-8, 1.0)
KINDS = ("plain", "zero rows", "zero columns", "rows", "columns", "steps", "outlier")
SHAPES = (
    *((33, 8), (5, 17), (8, 8), (1, 3), (33, 2, 3), (3, 17, 2), (17, 3, 2, 2)),
    *((2, 3, 5, 8),),
)
SMALLEST = float(jnp.finfo(jnp.float32).tiny)
LARGEST = float(jnp.finfo(jnp.float32).max)


class Case(NamedTuple):
    """Gradients of all steps and the settings of the optimizer."""

    grads: np.ndarray  # [STEPS, *shape]
    b2: float | str  # a number or a name in SCHEDULES
    eps: float
    kind: str


def cases(n: int, seed: int) -> Iterator[Case]:
    """Yields random cases; those of one shape, dtype and optimizer in a row."""
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
    """Returns gradients of a scale from 1e-30 to 1e30, or what float16 can hold."""
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
            grads[tuple(rng.integers(n) for n in grads.shape)] *= 10 ** rng.uniform(
                0, 20
            )
    limit = float(jnp.finfo(dtype).max)
    return np.clip(grads, -limit, limit).astype(jnp.dtype(dtype))


@functools.lru_cache(maxsize=64)
def compiled(shape: tuple[int, ...], dtype: str, b2: float | str, eps: float) -> Any:
    """Returns a function from all gradients to all updates, rows and columns."""
    tx = ember_optax.scale_by_ember(SCHEDULES.get(b2, b2), eps)

    def run(grads: jax.Array) -> Any:
        def step(state: Any, grad: jax.Array) -> Any:
            update, state = tx.update({"table": grad}, state)
            return state, (update["table"], *state.tables["table"])

        return jax.lax.scan(step, tx.init({"table": grads[0]}), grads)[1]

    return jax.jit(run)


def problem(case: Case) -> str | None:
    """Returns what is wrong with the updates of a case, if anything is."""
    shape, dtype = case.grads.shape[1:], case.grads.dtype
    updates, rows, cols = jax.device_get(
        compiled(shape, str(dtype), case.b2, case.eps)(case.grads)
    )
    if not (np.isfinite(rows).all() and np.isfinite(cols).all()):
        return "the state is not finite"
    grads = np.asarray(case.grads, np.float64)
    expected = oracle_updates(grads, case)
    info = jnp.finfo(dtype)
    # Where the rule's own update does not fit into the dtype, it is infinite.
    fits = np.abs(expected) < 0.99 * float(info.max)
    if not np.isfinite(updates[fits]).all():
        return "an update is not finite"
    found = np.asarray(updates, np.float64)
    if overflows(grads, shape):
        return None
    absolute = 1.01 * float(
        info.smallest_subnormal if dtype != "float32" else info.tiny
    )
    relative = 3e-6 + float(info.eps) / 2
    error = np.abs(found - expected) - absolute - relative * np.abs(expected)
    error = np.where(fits, error, 0)
    if (error <= 0).all():
        return None
    if not underflows(grads, case.b2, shape):
        return f"off by {np.max(error / np.abs(expected + SMALLEST)):.2g} of an update"
    # Squares below the smallest number are lost, and statistics that are not much
    # larger are too small by them.
    largest = 1 / math.sqrt(1 - max(decays(case.b2)))
    bound = 2 * max(np.abs(expected).max(), largest)
    return "too large an update" if np.abs(found).max() > bound else None


@functools.cache
def decays(b2: float | str) -> list[float]:
    """Returns the decay of every step."""
    if isinstance(b2, str):
        return [float(SCHEDULES[b2](step)) for step in range(STEPS)]
    return [b2] * STEPS


def oracle_updates(grads: np.ndarray, case: Case) -> np.ndarray:
    b2 = decays(case.b2).__getitem__
    oracle = Oracle(np.zeros(grads.shape[1:]), b2=b2, eps=case.eps)
    updates = []
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for grad in grads:
            oracle.step(grad)
            updates.append(oracle.update)
    return np.stack(updates)


def overflows(grads: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a sum of squares is more than half of what float32 can hold."""
    rows = max(shape)
    longest = max(rows, math.prod(shape) // rows)
    return np.abs(grads).max() ** 2 * longest > LARGEST / 2 * min(1, rows / longest)


def underflows(grads: np.ndarray, b2: float | str, shape: tuple[int, ...]) -> bool:
    """Whether a part of a statistic is less than a thousand smallest numbers."""
    sizes = np.abs(grads[grads != 0])
    part = (1 - max(decays(b2))) / max(math.prod(shape) // max(shape), max(shape))
    return bool(sizes.size and sizes.min() ** 2 * part < 1e3 * SMALLEST)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = collections.Counter()
    for case in tqdm(cases(arguments.cases, arguments.seed), total=arguments.cases):
        if wrong := problem(case):
            shape, dtype = case.grads.shape[1:], case.grads.dtype
            setting = f"{dtype}{list(shape)}, b2 {case.b2}, eps {case.eps}"
            tqdm.write(f"{setting}, {case.kind}: {wrong}")
            found[wrong.split(" by ")[0]] += 1
    print(f"{found.total()} of {arguments.cases} cases are wrong", dict(found) or "")
    return min(1, found.total())


if __name__ == "__main__":
    raise SystemExit(main())
