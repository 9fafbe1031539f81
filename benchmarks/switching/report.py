"""Tables of docs/switching.md."""

import itertools
from pathlib import Path

import numpy as np

from benchmarks.common import store
from benchmarks.common.intervals import difference
from benchmarks.common.store import Run
from benchmarks.common.tables import markdown

RESULTS = Path(__file__).with_name("results.jsonl")
FIRST_STEPS = Path(__file__).with_name("first_steps.json")
NAMES = {"adam": "AdamW", "ember": "Ember"}
EVERY = 5  # steps between evaluations
SHOWN = (5, 10, 20, 40, 60)  # steps after the change


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    return {
        "switching.changes": changes(store.read(RESULTS)),
        "switching.first_steps": first_steps(store.read_object(FIRST_STEPS)),
    }


def changes(runs: list[Run]) -> str:
    """Returns the loss minus that of the copy, by change and number of steps."""
    rows = []
    for title, of_change in itertools.groupby(runs, _title):
        pairs = [(run["changed"], run["kept"]) for run in of_change]
        changed, kept = np.array(pairs).transpose(1, 2, 0)  # each [evaluations, seeds]
        shown = [n // EVERY - 1 for n in SHOWN]
        found = [str(difference(changed[i].tolist(), kept[i].tolist())) for i in shown]
        noise = kept.std(axis=1, ddof=1)[shown].mean()
        rows.append([title, *found, f"{noise:.3f}"])
    head = ["change", *(f"{n} steps after" for n in SHOWN), "spread of seeds"]
    return markdown(head, rows, left=1)


def first_steps(content: dict[str, dict[str, dict[str, float]]]) -> str:
    """Returns the size of a token's step by what its `row` is, in learning rates."""
    rows = [
        [row, *(f"{size:.2f}" for size in sizes.values())]
        for row, sizes in content["first_steps"].items()
    ]
    return markdown(["`row` of a new token", "embedding", "head"], rows, left=1)


def _title(run: Run) -> str:
    sides = (run["settings"][key] for key in ("before", "after"))
    return " to ".join(f"{NAMES[optimizer]} {rate:g}" for optimizer, rate in sides)
