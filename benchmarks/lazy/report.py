"""Tables and figure of docs/lazy.md."""

import itertools
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import store
from benchmarks.common.figures import EMBER, OTHER, plt, save
from benchmarks.common.store import Run
from benchmarks.common.tables import markdown, paragraphs

RESULTS = Path(__file__).with_name("results.json")
NGRAM_TABLE = Path(__file__).with_name("ngram_table.jsonl")
SWEPT_SEED = 100  # of the runs that choose learning rates

Measured = dict[str, dict[str, Any]]
"""Measurements by rule and number of rows."""


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    runs = store.read(NGRAM_TABLE)
    return {
        "lazy.steps": steps(store.read_object(RESULTS)["measured"]),
        "lazy.ngram_table": ngram_table(runs),
        "lazy.ngram_summary": ngram_summary(runs),
        "lazy.ngram_rates": ngram_rates(runs),
    }


def steps(measured: Measured) -> str:
    rows = [
        [
            rule,
            f"{int(n_rows):,}",
            f"{1e3 * m['seconds']:,.2f} ms",
            f"{m['time_over_smallest']:,.2f}",
            f"{m['temp_bytes'] / 1e6:,.2f} MB",
            f"{_accessed(m) / 1e6:,.1f} MB",
        ]
        for rule, by_rows in measured.items()
        for n_rows, m in by_rows.items()
    ]
    head = ["rule", "rows", "time of a step", "ratio", "temporaries", "bytes accessed"]
    return markdown(head, rows, left=1)


def ngram_table(runs: list[Run]) -> str:
    """Returns the losses of each rule at its best learning rate, by seed."""
    repeated = [run for run in runs if _seed(run) != SWEPT_SEED]
    rows = []
    for rule, same_rule in itertools.groupby(repeated, _rule):
        same = list(same_rule)
        losses = [run["validation_loss"] for run in same]
        rate = same[0]["settings"]["learning_rate"]
        by_seed = ", ".join(f"{loss:.3f}" for loss in losses)
        shown = "" if rate is None else f"{rate:g}"
        rows.append([rule, shown, by_seed, f"{statistics.mean(losses):.3f}"])
    head = ["table trained by", "learning rate", "validation loss by seed", "mean"]
    return markdown(head, rows, left=1)


def ngram_summary(runs: list[Run]) -> str:
    """Returns a paragraph on the gain and the state of Ember's table."""
    losses, touched = {}, []
    for rule in ("Ember", "no table"):
        same = [r for r in runs if _rule(r) == rule and _seed(r) != SWEPT_SEED]
        losses[rule] = statistics.mean(run["validation_loss"] for run in same)
        touched += [run["rows_touched"] for run in same if rule == "Ember"]
    gain = losses["no table"] - losses["Ember"]
    return paragraphs(
        f"""With Ember the table lowers the loss by {gain:.2f} on average;
        {min(touched):,} to {max(touched):,} of its rows are touched."""
    )


def ngram_rates(runs: list[Run]) -> str:
    """Returns the losses of the runs that chose the learning rates, as a list."""
    swept = [run for run in runs if _seed(run) == SWEPT_SEED]
    found = []
    for rule, same_rule in itertools.groupby(swept, _rule):
        losses = [
            f"{run['validation_loss']:.3f} at {run['settings']['learning_rate']:g}"
            for run in same_rule
        ]
        found.append(f"- {rule}: {', '.join(losses)}")
    return "\n".join(found)


def draw() -> None:
    """Draws time and bytes of a step by the number of rows."""
    content = store.read_object(RESULTS)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="tight")
    for rule, shade in (("lazy", EMBER), ("dense", OTHER)):
        by_rows = content["measured"][rule]
        rows, values = [int(x) for x in by_rows], by_rows.values()
        for axis, y in (
            (axes[0], [1e3 * m["seconds"] for m in values]),
            (axes[1], [_accessed(m) for m in values]),
        ):
            axis.plot(rows, y, color=shade, marker="o", label=rule)
    for axis, title in zip(axes, ("time, ms", "bytes accessed"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="rows of the table", title=title)
        axis.legend()
    n, columns = content["batch"], content["columns"]
    figure.suptitle(f"One step on {n:,} rows of {columns} columns")
    save(figure, RESULTS.with_name("lazy.png"))


def _accessed(m: dict[str, float]) -> float:
    return m.get("batch_bytes", m["bytes_accessed"])


def _rule(run: Run) -> str:
    return run["settings"]["rule"]


def _seed(run: Run) -> int:
    return run["settings"]["seed"]
