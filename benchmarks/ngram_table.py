"""What a hashed table of bigrams adds to a small model, by the rule that trains it.

    python -m benchmarks.ngram_table

Runs `examples.ngram_table` without its table and with it: trained by lazy Ember, by the
same without columns, and by row-wise Adagrad, each at its best of some learning rates
(shorter runs, another seed). Takes a quarter of an hour on two cores. Writes
`benchmarks/results/ngram_table.json`.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import results
from ember_optax import lazy
from examples import ngram_table
from examples.ngram_table import TableStep

SWEPT_SEED = 100


def ember(rate: float) -> TableStep:
    return partial(lazy.apply, learning_rate=rate)


def rows_only(rate: float) -> TableStep:
    return partial(lazy.apply, learning_rate=rate, columns=False)


def row_wise_adagrad(rate: float) -> TableStep:
    def schedule(count: Any) -> jax.Array:
        return rate / jnp.sqrt(jnp.float32(count) + 1)

    # Nothing is forgotten: the mean over all steps times their number is the sum.
    return partial(lazy.apply, learning_rate=schedule, b2=1 - 1e-9, columns=False)


RULES: dict[str, tuple[Callable[[float], TableStep], tuple[float, ...]]] = {
    "Ember": (ember, (3e-3, 1e-2, 3e-2)),
    "Ember, rows only": (rows_only, (3e-3, 1e-2, 3e-2)),
    "row-wise Adagrad": (row_wise_adagrad, (0.03, 0.1, 0.3, 1.0)),
}


def markdown(content: dict[str, Any]) -> str:
    """Returns the table of docs/lazy.md."""
    lines = ["| table trained by | learning rate | validation loss by seed | mean |"]
    lines.append("|---|---:|---|---:|")
    for rule in dict.fromkeys(run["rule"] for run in content["runs"]):
        runs = [run for run in content["runs"] if run["rule"] == rule]
        losses = [run["validation_loss"] for run in runs]
        by_seed = ", ".join(f"{loss:.3f}" for loss in losses)
        rate = runs[0]["learning_rate"]
        mean = statistics.mean(losses)
        shown = "" if rate is None else f"{rate:g}"
        lines.append(f"| {rule} | {shown} | {by_seed} | {mean:.3f} |")
    return "\n".join(lines)


def markdown_of_sweep(content: dict[str, Any]) -> str:
    """Returns the losses by learning rate, as docs/lazy.md has them."""
    return "; ".join(
        f"{rule} " + ", ".join(f"{loss:.3f} at {rate}" for rate, loss in losses.items())
        for rule, losses in content["sweep"].items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10**7, help="rows of the table")
    parser.add_argument("--steps", type=int, default=1000, help="of 1024 tokens each")
    parser.add_argument("--sweep-steps", type=int, default=400, help="for the rates")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    sweep: dict[str, dict[str, float]] = {}
    for rule, (make, rates) in RULES.items():
        sweep[rule] = {}
        for rate in rates:
            run = ngram_table.train(
                args.rows, args.sweep_steps, SWEPT_SEED, table_step=make(rate)
            )
            sweep[rule][f"{rate:g}"] = run["validation_loss"]
    runs = []
    for seed in range(args.seeds):
        run = ngram_table.train(0, args.steps, seed)
        runs.append({"rule": "no table", "learning_rate": None, "seed": seed} | run)
        for rule, (make, _) in RULES.items():
            rate = float(min(sweep[rule], key=sweep[rule].__getitem__))
            run = ngram_table.train(args.rows, args.steps, seed, table_step=make(rate))
            runs.append({"rule": rule, "learning_rate": rate, "seed": seed} | run)
    for run in runs:
        del run["seconds_per_step"]  # not taken in turns: benchmarks/lazy.py has times
    runs.sort(key=lambda run: [*RULES, "no table"].index(run["rule"]))
    content = {
        "steps": args.steps,
        "sweep_steps": args.sweep_steps,
        "sweep": sweep,
        "runs": runs,
    }
    path = results.write("ngram_table", content)
    print(markdown(content), markdown_of_sweep(content), sep="\n\n")
    print(f"\nWrote {path}")


if __name__ == "__main__":
    main()
