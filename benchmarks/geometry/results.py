"""The finished runs, and how tables and figures read them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.store import Run

RESULTS = Path(__file__).with_name("results.jsonl")
COST = Path(__file__).with_name("cost.json")
NAMES = {"ember": "Ember", "adam": "Adam"}

Runs = list[Run]


def optimizer_of(run: Run) -> str:
    return run["settings"]["optimizer"]


def groups(runs: Runs) -> Iterator[tuple[str, str]]:
    """Yields matrix and group of all rows that were followed."""
    for name, measured in runs[0]["matrices"].items():
        for group in measured["ray"]:
            yield name, group


def label(name: str, group: str) -> str:
    return name if group == "all" else f"{name}, {group}"


def read(runs: Runs, optimizer: str, *path: str, over: Any = np.mean) -> np.ndarray:
    """Returns the numbers at a path of each run, with their mean over seeds."""
    found = []
    for run in runs:
        if optimizer_of(run) == optimizer:
            value = run
            for key in path:
                value = value[key]
            found.append(np.atleast_1d(np.array(value, np.float64)))
    return over(found, axis=0)
