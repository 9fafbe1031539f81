"""Memory and time of one optimizer step on one token table, against Optax's others.

    python -m benchmarks.step

What XLA allocates and reads is exact and the same everywhere. Times are medians of
ratios in one process: each round runs the floor, optax.adam and one other optimizer,
one after the other. The floor is the least that an optimizer does whose step depends on
the whole gradient: a reduction over it, then `p - lr * g`. Writes
`benchmarks/results/step.json` and `step.png` and prints the tables of
docs/performance.md.
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
from optax import contrib
from tqdm import tqdm

import ember_optax
from benchmarks import results

Optimizer = Callable[[], optax.GradientTransformation]
Measured = dict[str, dict[str, dict[str, dict[str, float]]]]

TABLES = [(4096, 96), (50304, 768), (256128, 1024)]
DTYPES = ("float32", "bfloat16")
# A step of Muon on a larger table takes minutes, as does its compilation.
MUON_ROWS = 10_000


def floor() -> optax.GradientTransformation:
    """Reduces the gradient, then takes a step along it."""

    def init(params: Any) -> Any:
        return jnp.zeros(params.shape[0], jnp.float32)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state, params
        sums = jnp.sum(jnp.square(updates.astype(jnp.float32)), axis=1)
        # Else XLA:CPU stores a float32 copy of a bfloat16 gradient.
        updates, sums = jax.lax.optimization_barrier((updates, sums))
        return -1e-2 * updates, sums

    return optax.GradientTransformation(init, update)


OPTIMIZERS: dict[str, Optimizer] = {
    "floor": floor,
    "SGD": lambda: optax.sgd(1e-2),
    "Ember": lambda: ember_optax.ember(1e-2),
    "Lion": lambda: optax.lion(1e-3),
    "Adam": lambda: optax.adam(1e-3),
    "Adam, b1 = 0": lambda: optax.adam(1e-3, b1=0.0),
    "SM3": lambda: optax.sm3(1e-2),
    "factored RMS": lambda: optax.chain(
        optax.scale_by_factored_rms(), optax.scale_by_learning_rate(1e-2)
    ),
    "Adafactor": lambda: optax.adafactor(1e-2),
    "Muon": lambda: contrib.muon(1e-2),
}


def bytes_of(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def compile_step(tx: optax.GradientTransformation, table: jax.ShapeDtypeStruct) -> Any:
    """Compiles update and apply, with table and state donated, where the table is."""

    def step(table: Any, state: Any, grad: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grad, state, table)
        return optax.apply_updates(table, updates), state

    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=table.sharding),
        jax.eval_shape(tx.init, table),
    )
    return jax.jit(step, donate_argnums=(0, 1)).lower(table, state, table).compile()


def sizes(
    step: Any, tx: optax.GradientTransformation, table: jax.ShapeDtypeStruct
) -> dict[str, float]:
    """Returns what a compiled step takes.

    Returns:
      `state_bytes`, `temp_bytes`, and `traffic`: bytes read and written by XLA's count,
      in sizes of the table.
    """
    return {
        "state_bytes": bytes_of(jax.eval_shape(tx.init, table)),
        "temp_bytes": step.memory_analysis().temp_size_in_bytes,
        "traffic": step.cost_analysis()["bytes accessed"] / bytes_of(table),
    }


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


def markdown(by_dtype: dict[str, dict[str, dict[str, float]]]) -> str:
    """Returns the table of docs/performance.md for one size of table."""
    head = ["", "state"]
    for dtype in by_dtype:
        head += [f"{dtype}: traffic", "temporaries", "time / Adam", "time / floor"]
    rows = []
    for name in by_dtype["float32"]:
        cells = [name, f"{by_dtype['float32'][name]['state_bytes'] / 1e6:,.2f} MB"]
        for by_name in by_dtype.values():
            m = by_name[name]
            cells += [f"{m['traffic']:.2f}", f"{m['temp_bytes'] / 1e6:,.1f} MB"]
            cells += [f"{m['over_adam']:.2f}", f"{m['over_floor']:.2f}"]
        rows.append(cells)
    return results.markdown(head, rows, left=1)


def title_of(table: str) -> str:
    return table.replace("x", " x ")


def plot(measured: Measured) -> None:
    """Draws the traffic of each optimizer, and its time by size of the table."""
    panels = [("bytes accessed (XLA's count),\nin sizes of the table", "traffic", 1)]
    for i, table in enumerate(measured):
        panels.append((f"time of a step, Adam = 1\n{title_of(table)}", "over_adam", i))
    figure, axes = plt.subplots(1, 4, figsize=(13, 4), sharey=True, layout="tight")
    for axis, (label, key, i) in zip(axes, panels, strict=True):
        for j, by_name in enumerate(list(measured.values())[i].values()):
            for y, (name, m) in enumerate(by_name.items()):
                color = "C1" if name == "Ember" else "C0"
                place = y + 0.4 * (j - 0.5)
                axis.barh(place, m[key], 0.36, color=color, alpha=1 - 0.45 * j)
                text = f" {m[key]:.{1 if key == 'traffic' else 2}f}"
                axis.text(m[key], place, text, va="center", fontsize=6)
        axis.set_yticks(range(len(OPTIMIZERS)), OPTIMIZERS)
        axis.set_xlabel(label)
        axis.set(xscale="log", xlim=(1 if key == "traffic" else 0.05, 150))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle("One step on one token table; dark float32, light bfloat16")
    figure.savefig(results.RESULTS / "step.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each")
    args = parser.parse_args()
    measured: Measured = {f"{v}x{d}": {} for v, d in TABLES}
    cases = [(shape, dtype) for shape in TABLES for dtype in DTYPES]
    for (v, d), dtype in (progress := tqdm(cases)):
        progress.set_description(f"{v} x {d}, {dtype}")
        table = jax.ShapeDtypeStruct((v, d), dtype)
        measured[f"{v}x{d}"][dtype] = measure(table, args.repeats)
    path = results.write("step", {"measured": measured})
    plot(measured)
    for table, by_dtype in measured.items():
        print(f"\n{title_of(table)}\n\n{markdown(by_dtype)}")
    print(f"\nWrote {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
