"""The fused variant: what the TPU compiler counts, and how it trains a small model.

    python -m benchmarks.fused

Compiles a step for one chip of each TPU family, without a TPU, and trains a small
language model on Python's standard library by the exact rule and by the variant, on the
same batches. Takes a quarter of an hour on one core. Writes
`benchmarks/results/fused.json` and prints the tables of docs/fused.md.
"""

import argparse
import functools
import statistics
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from scipy import stats

from benchmarks import fused_runs, results
from benchmarks.step import OPTIMIZERS, bytes_of, compile_step
from benchmarks.tpu_step import CHIPS, DTYPES, chip
from configs import pretrain_small
from ember_optax.experimental import fused
from examples.lm import Config, data

TABLE = (256128, 2048)
OTHERS = ("SGD", "Ember", "Adam")


def compile_fused(
    shape: tuple[int, int],
    dtype: Any,
    sharding: jax.sharding.Sharding,
    vocab_axis: int = 0,
) -> Any:
    """Compiles a step with table and state donated."""

    def place(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    table = place(jax.ShapeDtypeStruct(shape, dtype))
    init = functools.partial(fused.init, vocab_axis=vocab_axis)
    state = jax.tree.map(place, jax.eval_shape(init, table))
    step = functools.partial(fused.apply, learning_rate=1e-2, vocab_axis=vocab_axis)
    return jax.jit(step, donate_argnums=(0, 1)).lower(table, state, table).compile()


def measure_steps() -> dict[str, dict[str, dict[str, Any]]]:
    """Returns by family, dtype and rule: `traffic` in sizes of the table, estimated
    `seconds` and `temp_bytes`."""
    measured: dict[str, Any] = {}
    for family in CHIPS:
        for dtype in DTYPES:
            table = jax.ShapeDtypeStruct(TABLE, dtype, sharding=chip(family))
            steps = {name: compile_step(OPTIMIZERS[name](), table) for name in OTHERS}
            steps["fused"] = compile_fused(TABLE, jnp.dtype(dtype), chip(family))
            measured.setdefault(family, {})[dtype] = {
                name: {
                    "traffic": step.cost_analysis()["bytes accessed"] / bytes_of(table),
                    "seconds": step.cost_analysis()["optimal_seconds"],
                    "temp_bytes": step.memory_analysis().temp_size_in_bytes,
                }
                for name, step in steps.items()
            }
    return measured


def compare(runs: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    """Compares the validation losses of an arm with those of the exact rule.

    Returns:
      The `differences` by seed, their `mean`, and the `interval` that holds the mean of
      all seeds with 95 % confidence, by Student's t.
    """
    losses = [run["validation_loss"] for run in runs]
    differences = [x[arm] - x["exact"] for x in losses]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / len(runs) ** 0.5
    half = float(stats.t.ppf(0.975, len(runs) - 1)) * error
    return {
        "differences": differences,
        "mean": mean,
        "interval": [mean - half, mean + half],
    }


def markdown_of_steps(measured: dict[str, Any]) -> str:
    head = ["", "temporaries, v5p"]
    for family in CHIPS:
        head += [f"{family}: traffic", "time / Ember"]
    rows = []
    for dtype in DTYPES:
        for name in (*OTHERS, "fused"):
            temporaries = measured["v5p"][dtype][name]["temp_bytes"] / 1e6
            cells = [f"{name}, {dtype}", f"{temporaries:.1f} MB"]
            for family in CHIPS:
                by_name = measured[family][dtype]
                ratio = by_name[name]["seconds"] / by_name["Ember"]["seconds"]
                cells += [f"{by_name[name]['traffic']:.3f}", f"{ratio:.2f}"]
            rows.append(cells)
    return results.markdown(head, rows, left=1)


def markdown_of_distances(runs: list[dict[str, Any]]) -> str:
    """Returns the table of distances by step, means over the seeds."""

    def mean(count: str, *path: str) -> str:
        values = [run["logged"][count] for run in runs]
        for key in path:
            values = [value and value[key] for value in values]
        return f"{statistics.mean(values):.4f}" if None not in values else ""

    head = ["step"]
    for what in ("updates", "tables", "tables of a nudged run"):
        head += [f"{what}: {name}" for name in fused_runs.VOCAB_AXES]
    rows = []
    for count in runs[0]["logged"]:
        cells = [count]
        for path in (["of_updates"], ["of_tables", "fused"], ["of_tables", "nudged"]):
            cells += [mean(count, *path, name) for name in fused_runs.VOCAB_AXES]
        rows.append(cells)
    return results.markdown(head, rows, left=0)


def markdown_of_losses(content: dict[str, Any]) -> str:
    lines = ["| seed | exact | fused | difference | nudged, difference |"]
    lines.append("|---:|---:|---:|---:|---:|")
    ours, nudged = content["compared"]["fused"], content["compared"]["nudged"]
    for i, run in enumerate(content["runs"]):
        loss = run["validation_loss"]
        lines.append(
            f"| {run['seed']} | {loss['exact']:.4f} | {loss['fused']:.4f}"
            f" | {ours['differences'][i]:+.4f} | {nudged['differences'][i]:+.4f} |"
        )
    means = [
        f"{x['mean']:+.4f} ({x['interval'][0]:+.4f} to {x['interval'][1]:+.4f})"
        for x in (ours, nudged)
    ]
    lines.append(f"| mean, 95 % interval | | | {' | '.join(means)} |")
    return "\n".join(lines)


def tables(content: dict[str, Any]) -> list[str]:
    """Returns the tables of docs/fused.md."""
    return [
        markdown_of_steps(content["steps_on_tpu"]),
        markdown_of_distances(content["runs"]),
        markdown_of_losses(content),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="of 512 tokens each")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    steps_on_tpu = measure_steps()
    config: Config = pretrain_small.get_config()
    tokens = data.load(**config.data)
    runs = [fused_runs.train(tokens, seed, args.steps) for seed in range(args.seeds)]
    content = {
        "libtpu": version("libtpu"),
        "table": TABLE,
        "steps_on_tpu": steps_on_tpu,
        "steps": args.steps,
        "runs": runs,
        "compared": {arm: compare(runs, arm) for arm in fused_runs.ARMS[1:]},
    }
    path = results.write("fused", content)
    print("\n\n".join(tables(content)))
    print(f"\nWrote {path}")


if __name__ == "__main__":
    main()
