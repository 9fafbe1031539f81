"""What a hashed table of bigrams adds to a small model, over three seeds.

    python -m benchmarks.ngram_table

Runs `examples.ngram_table` without and with its table, some minutes on two cores.
Writes `benchmarks/results/ngram_table.json`.
"""

import argparse
import statistics
from typing import Any

from benchmarks import results
from examples import ngram_table


def markdown(runs: list[dict[str, Any]]) -> str:
    """Returns the table of docs/lazy.md."""
    lines = ["| seed | rows of the table | validation loss | rows touched |"]
    lines.append("|---:|---:|---:|---:|")
    lines += [
        f"| {x['seed']} | {x['rows']:,} | {x['validation_loss']:.3f} |"
        f" {x['rows_touched']:,} |"
        for x in runs
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10**7, help="rows of the table")
    parser.add_argument("--steps", type=int, default=1000, help="of 1024 tokens each")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    runs = [
        {"seed": seed, "rows": rows, **ngram_table.train(rows, args.steps, seed)}
        for seed in range(args.seeds)
        for rows in (0, args.rows)
    ]
    for run in runs:
        del run["seconds_per_step"]  # not taken in turns: benchmarks/lazy.py has times
    gains = [
        without["validation_loss"] - beside["validation_loss"]
        for without, beside in zip(runs[::2], runs[1::2], strict=True)
    ]
    content = {
        "steps": args.steps,
        "table_learning_rate": ngram_table.TABLE_LEARNING_RATE,
        "runs": runs,
        "gain_mean": statistics.mean(gains),
        "gains": gains,
    }
    path = results.write("ngram_table", content)
    print(markdown(runs))
    print(f"\nWrote {path}")


if __name__ == "__main__":
    main()
