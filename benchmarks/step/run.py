"""Memory and time of one optimizer step on one token table, on this machine.

    python -m benchmarks.step.run

Every step is compiled with clipping by the global norm, and alone. Memory and bytes
accessed are XLA's and are the same on every machine. Times are medians of ratios in one
process: each round runs SGD, optax.adam and one other optimizer in turn. SGD is the
minimum for a step with clipping: a reduction over the gradient, then
`p - lr * scale * g`. Writes benchmarks/step/results.json.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from benchmarks.common import store
from benchmarks.common.command import make_parser
from benchmarks.step.compiling import (
    DTYPES,
    OPTIMIZERS,
    WITHOUT_MUON,
    clipped,
    sizes,
    state_bytes,
)
from benchmarks.step.report import RESULTS
from tests.compiling import compile_step

# Shapes, and how many steps of each optimizer are timed.
TABLES = {(4096, 96): 25, (50304, 768): 15, (256128, 1024): 5}
# A step of Muon on a larger table takes minutes, as does its compilation.
MUON_ROWS = 10_000


def measure(table: jax.ShapeDtypeStruct, repeats: int) -> dict[str, dict[str, Any]]:
    """Measures one step of each optimizer on a table of one shape and dtype.

    Returns:
      For each optimizer its `state_bytes` and the `sizes` of its step `alone` and
      `clipped`; for the clipped one also the medians of its `seconds` and of its time
      `over_adam` and `over_sgd` in the same round.
    """
    grad = 1e-3 * jax.random.normal(jax.random.key(0), table.shape, table.dtype)
    names = list(OPTIMIZERS) if table.shape[0] <= MUON_ROWS else WITHOUT_MUON
    optimizers = {name: clipped(name) for name in names}
    steps = {name: compile_step(tx, table) for name, tx in optimizers.items()}
    measured: dict[str, dict[str, Any]] = {}
    for name, tx in optimizers.items():
        group = {key: (optimizers[key], steps[key]) for key in ("SGD", "Adam", name)}
        seconds = time_in_turns(group, grad, repeats)
        behind = sizes(steps[name], table)
        behind["seconds"] = statistics.median(seconds[name])
        for other in ("SGD", "Adam"):
            pairs = zip(seconds[name], seconds[other], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            behind[f"over_{other.lower()}"] = ratio
        measured[name] = {
            "state_bytes": state_bytes(tx, table),
            "clipped": behind,
            "alone": sizes(compile_step(OPTIMIZERS[name](), table), table),
        }
    return measured


def time_in_turns(
    steps: dict[str, tuple[Any, Any]], grad: jax.Array, repeats: int
) -> dict[str, list[float]]:
    """Times optimizers and their steps one after the other, `repeats` times.

    Returns:
      Seconds by name.
    """
    trained = {}
    for name, (tx, _) in steps.items():
        table = jnp.zeros_like(grad)
        trained[name] = (table, tx.init(table))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, (_, step) in steps.items():
            start = time.perf_counter()
            trained[name] = jax.block_until_ready(step(*trained[name], grad))
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}  # the first warms up


def main() -> None:
    make_parser(__doc__).parse_args()
    measured: dict[str, Any] = {f"{v}x{d}": {} for v, d in TABLES}
    cases = [(shape, dtype) for shape in TABLES for dtype in DTYPES]
    for (v, d), dtype in (progress := tqdm(cases)):
        progress.set_description(f"{v} x {d}, {dtype}")
        table = jax.ShapeDtypeStruct((v, d), dtype)
        measured[f"{v}x{d}"][dtype] = measure(table, TABLES[v, d])
    store.write_object(RESULTS, {"measured": measured})
    print(f"Wrote {RESULTS}")


if __name__ == "__main__":
    main()
