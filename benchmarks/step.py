"""Memory and time of one optimizer step on one token table, against Optax's others.

    python -m benchmarks.step --rows=50304 --columns=768

What XLA allocates and reads is exact and the same everywhere. Times are medians of
paired runs in one process, shown as ratios to optax.adam in the same run. Writes
`benchmarks/results/step.json` and `step.png`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from tqdm import tqdm

import ember_optax
from benchmarks import results

OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(1e-2),
    "ember": lambda: ember_optax.ember(1e-2),
    "lion": lambda: optax.lion(1e-3),
    "adam b1=0": lambda: optax.adam(1e-3, b1=0.0),
    "adam": lambda: optax.adam(1e-3),
    "sm3": lambda: optax.sm3(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2),
}


def compile_step(tx: optax.GradientTransformation, table: jax.ShapeDtypeStruct) -> Any:
    """Compiles update and apply, with table and state donated."""

    def step(table: Any, state: Any, grad: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grad, state, table)
        return optax.apply_updates(table, updates), state

    state = jax.eval_shape(tx.init, table)
    return jax.jit(step, donate_argnums=(0, 1)).lower(table, state, table).compile()


def measure(
    optimizers: dict[str, Callable[[], optax.GradientTransformation]],
    table: jax.ShapeDtypeStruct,
    repeats: int,
) -> dict[str, dict[str, float]]:
    """Measures one step of each optimizer on a table of one shape and dtype.

    Returns:
      For each optimizer: `state_bytes`, `temp_bytes`, `bytes_accessed` in units of the
      table's own bytes, `seconds` (median) and `time_over_adam` (median of ratios).
    """
    table_bytes = table.size * table.dtype.itemsize
    steps = {name: compile_step(make(), table) for name, make in optimizers.items()}
    seconds = time_in_turns(optimizers, steps, table, repeats)
    measured = {}
    for name, step in steps.items():
        state = jax.eval_shape(optimizers[name]().init, table)
        measured[name] = {
            "state_bytes": sum(
                x.size * x.dtype.itemsize for x in jax.tree.leaves(state)
            ),
            "temp_bytes": step.memory_analysis().temp_size_in_bytes,
            "bytes_accessed": step.cost_analysis()["bytes accessed"] / table_bytes,
            "seconds": statistics.median(seconds[name]),
            "time_over_adam": statistics.median(
                a / b for a, b in zip(seconds[name], seconds["adam"], strict=True)
            ),
        }
    return measured


def time_in_turns(
    optimizers: dict[str, Callable[[], optax.GradientTransformation]],
    steps: dict[str, Any],
    table: jax.ShapeDtypeStruct,
    repeats: int,
) -> dict[str, list[float]]:
    """Times the steps one after the other, `repeats` times: seconds by optimizer."""
    grad = jax.random.normal(jax.random.key(0), table.shape, table.dtype)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(repeats), desc=f"{table.dtype} {table.shape}"):
        for name, step in steps.items():
            params = jnp.zeros(table.shape, table.dtype)
            state = optimizers[name]().init(params)
            jax.block_until_ready((params, state, grad))
            start = time.perf_counter()
            jax.block_until_ready(step(params, state, grad))
            seconds[name].append(time.perf_counter() - start)
    return seconds


def plot(measured: dict[str, dict[str, dict[str, float]]], title: str) -> None:
    """Draws state, memory traffic and time of each optimizer."""
    panels = {
        "state_bytes": "optimizer state, bytes",
        "bytes_accessed": "bytes accessed (XLA's count),\nin sizes of the table",
        "time_over_adam": "time of a step, Adam = 1",
    }
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="tight")
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        for i, by_name in enumerate(measured.values()):
            positions = [y + 0.4 * (i - 0.5) for y in range(len(by_name))]
            values = [by_name[name][key] for name in by_name]
            colors = ["C1" if name == "ember" else "C0" for name in by_name]
            axis.barh(positions, values, 0.36, color=colors, alpha=1 - 0.45 * i)
            axis.set_yticks(range(len(by_name)), by_name)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_xscale("symlog", linthresh=1)
    axes[0].invert_yaxis()
    figure.suptitle(f"{title}; dark {', light '.join(measured)}", fontsize=10)
    figure.savefig(results.RESULTS / "step.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50304, help="tokens in the table")
    parser.add_argument("--columns", type=int, default=768, help="width of the table")
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each")
    args = parser.parse_args()
    shape = (args.rows, args.columns)
    measured = {
        dtype: measure(OPTIMIZERS, jax.ShapeDtypeStruct(shape, dtype), args.repeats)
        for dtype in ("float32", "bfloat16")
    }
    for dtype, by_name in measured.items():
        print(f"\n{dtype} {args.rows} x {args.columns}")
        print("optimizer         state bytes    temporaries  traffic  time/adam")
        for name, m in by_name.items():
            print(
                f"{name:12}{m['state_bytes']:17,}{m['temp_bytes']:15,}"
                f"{m['bytes_accessed']:9.2f}{m['time_over_adam']:11.2f}"
            )
    path = results.write("step", {"table": shape, "measured": measured})
    plot(measured, f"one table of {args.rows} x {args.columns}")
    print(f"\nWrote {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
