"""Tables of docs/fused.md."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import store
from benchmarks.common.intervals import Interval, difference
from benchmarks.common.store import Run
from benchmarks.common.tables import markdown

RESULTS = Path(__file__).with_name("results.jsonl")
STEPS = Path(__file__).with_name("steps.json")
TABLES = ("embedding", "head")


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    runs = store.read(RESULTS)
    return {
        "fused.steps": steps(store.read_object(STEPS)["measured"]),
        "fused.distances": distances(runs),
        "fused.losses": losses(runs),
    }


def steps(measured: dict[str, Any]) -> str:
    """Returns what the TPU compiler counts, by dtype and rule."""
    head = ["", "temporaries, v5p"]
    for family in measured:
        head += [f"{family}: bytes accessed", "time / Ember"]
    rows = []
    for dtype, by_rule in measured["v5p"].items():
        for name, on_v5p in by_rule.items():
            cells = [f"{name}, {dtype}", f"{on_v5p['temp_bytes'] / 1e6:.1f} MB"]
            for by_dtype in measured.values():
                m, ember = by_dtype[dtype][name], by_dtype[dtype]["Ember"]
                cells.append(f"{m['bytes_accessed_over_table']:.3f}")
                cells.append(f"{m['seconds'] / ember['seconds']:.2f}")
            rows.append(cells)
    return markdown(head, rows, left=1)


def distances(runs: list[Run]) -> str:
    """Returns the distances by step, means over the seeds."""

    def mean(count: str, *path: str) -> str:
        values = [run["logged"][count] for run in runs]
        for key in path:
            values = [value and value[key] for value in values]
        return f"{statistics.mean(values):.4f}" if None not in values else ""

    head = ["step"]
    for what in ("updates", "tables", "tables of a nudged run"):
        head += [f"{what}: {name}" for name in TABLES]
    rows = []
    for count in runs[0]["logged"]:
        cells = [count]
        for path in (["of_updates"], ["of_tables", "fused"], ["of_tables", "nudged"]):
            cells += [mean(count, *path, name) for name in TABLES]
        rows.append(cells)
    return markdown(head, rows, left=0)


def losses(runs: list[Run]) -> str:
    """Returns the validation losses by seed, and means with their intervals."""
    by_arm = {
        arm: [run["validation_loss"][arm] for run in runs]
        for arm in ("exact", "fused", "nudged")
    }
    exact, fused, nudged = by_arm.values()
    rows = [
        [
            str(run["settings"]["seed"]),
            f"{a:.4f}",
            f"{b:.4f}",
            f"{b - a:+.4f}",
            f"{c - a:+.4f}",
        ]
        for run, a, b, c in zip(runs, exact, fused, nudged, strict=True)
    ]
    means = [_shown(difference(arm, exact)) for arm in (fused, nudged)]
    rows.append(["mean, 95% interval", "", "", *means])
    head = ["seed", "exact", "fused", "difference", "nudged, difference"]
    return markdown(head, rows, left=0)


def _shown(x: Interval) -> str:
    return f"{x.mean:+.4f} ({x.low:+.4f} to {x.high:+.4f})"
