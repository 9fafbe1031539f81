"""Memory and time of one optimizer step on one token table, on this machine.

    python -m benchmarks.step.run

What XLA allocates and reads is exact and the same everywhere. Times are medians of
ratios in one process: each round runs the floor, optax.adam and one other optimizer,
one after the other. The floor is the least that an optimizer does whose step depends on
the whole gradient: a reduction over it, then `p - lr * g`. Writes
benchmarks/step/results.json.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from benchmarks.common import store
from benchmarks.step.compiling import DTYPES, OPTIMIZERS, compile_step, sizes
from benchmarks.step.report import RESULTS

TABLES = [(4096, 96), (50304, 768), (256128, 1024)]
# A step of Muon on a larger table takes minutes, as does its compilation.
MUON_ROWS = 10_000


def measure(table: jax.ShapeDtypeStruct, repeats: int) -> dict[str, dict[str, float]]:
    """Measures one step of each optimizer on a table of one shape and dtype.

    Returns:
      For each optimizer what `sizes` does, and the medians of its `seconds` and of its
      time `over_adam` and `over_floor` in the same round.
    """
    grad = 1e-3 * jax.random.normal(jax.random.key(0), table.shape, table.dtype)
    optimizers = dict(OPTIMIZERS)
    if table.shape[0] > MUON_ROWS:
        del optimizers["Muon"]
    steps = {name: compile_step(make(), table) for name, make in optimizers.items()}
    measured = {}
    for name, make in optimizers.items():
        measured[name] = sizes(steps[name], make(), table)
        group = {key: steps[key] for key in ("floor", "Adam", name)}
        seconds = time_in_turns(group, grad, repeats)
        measured[name]["seconds"] = statistics.median(seconds[name])
        for other in ("floor", "Adam"):
            pairs = zip(seconds[name], seconds[other], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            measured[name][f"over_{other.lower()}"] = ratio
    return measured


def time_in_turns(
    steps: dict[str, Any], grad: jax.Array, repeats: int
) -> dict[str, list[float]]:
    """Times the steps one after the other, `repeats` times: seconds by optimizer."""
    trained = {}
    for name in steps:
        table = jnp.zeros_like(grad)
        trained[name] = (table, OPTIMIZERS[name]().init(table))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            trained[name] = jax.block_until_ready(step(*trained[name], grad))
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each")
    args = parser.parse_args()
    measured: dict[str, Any] = {f"{v}x{d}": {} for v, d in TABLES}
    cases = [(shape, dtype) for shape in TABLES for dtype in DTYPES]
    for (v, d), dtype in (progress := tqdm(cases)):
        progress.set_description(f"{v} x {d}, {dtype}")
        table = jax.ShapeDtypeStruct((v, d), dtype)
        measured[f"{v}x{d}"][dtype] = measure(table, args.repeats)
    store.write_object(RESULTS, {"measured": measured})
    print(f"Wrote {RESULTS}")


if __name__ == "__main__":
    main()
