"""Tables of docs/geometry.md. Numbers are means over seeds."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import store
from benchmarks.common.store import Run
from benchmarks.common.tables import markdown

RESULTS = Path(__file__).with_name("results.jsonl")
NAMES = {"ember": "Ember", "adam": "Adam"}
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9)
"""Edges between classes of tokens, by the share of the steps that touch them."""
MEDIAN = 2  # of the five quantiles
CASES = ("row x col", "if it were exact", "row alone", "shuffled")


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    runs = store.read(RESULTS)
    tables = (rays, autocorrelations, factorizations, steps)
    return {f"geometry.{table.__name__}": table(runs) for table in tables}


def rays(runs: list[Run]) -> str:
    head = ["rows", "tables with", "share on a line", "random walk"]
    head += ["cosine to the displacement", "random walk"]
    rows = []
    for name, group in groups(runs):
        for optimizer in NAMES:
            at = optimizer, "matrices", name, "ray", group
            medians = [
                f"{mean(runs, *at, case, key)[MEDIAN]:.2f}"
                for key in ("share", "cosine")
                for case in ("actual", "walk")
            ]
            rows.append([label(name, group), NAMES[optimizer], *medians])
    return markdown(head, rows, left=2)


def evidence(runs: list[Run]) -> tuple[str, str]:
    """Returns finding and verdict on the claim that tokens move along a ray.

    It counts as reproduced if, in every group of rows, the share on a line is closer to
    1 than to the share of a random walk.
    """
    found, on_line = [], []
    for group in ("rare", "middle", "frequent"):
        for name in ("embedding", "head"):
            at = "ember", "matrices", name, "ray", group
            share = mean(runs, *at, "actual", "share")[MEDIAN]
            walk = mean(runs, *at, "walk", "share")[MEDIAN]
            found.append(f"{label(name, group)} {share:.2f} ({walk:.2f})")
            on_line.append(share > (1 + walk) / 2)
    text = "variance of a row's path on one line, Ember (a random walk): "
    verdict = "reproduced" if all(on_line) else "not reproduced"
    return text + ", ".join(found), verdict


def autocorrelations(runs: list[Run]) -> str:
    head = ["rows", "tables with", "lag 1", "2", "3", "4", "random order"]
    rows = []
    for name, group in groups(runs):
        for optimizer in NAMES:
            at = optimizer, "matrices", name, "autocorrelation", group
            if mean(runs, *at, "rows")[0] < 30:  # few were touched often enough
                continue
            found = [*mean(runs, *at, "actual"), *mean(runs, *at, "null")]
            cells = [f"{x:+.3f}" for x in found]
            rows.append([label(name, group), NAMES[optimizer], *cells])
    return markdown(head, rows, left=2)


def factorizations(runs: list[Run]) -> str:
    head = ["matrix", "tables with", *CASES, "update off by", "if it were exact"]
    rows = []
    for name in runs[0]["matrices"]:
        for optimizer in NAMES:
            at = optimizer, "matrices", name, "factorization"
            row = [f"{mean(runs, *at, case, 'divergence')[0]:.2f}" for case in CASES]
            for case in CASES[:2]:
                off = np.exp(-mean(runs, *at, case, "log_ratio") / 2)
                row.append(f"{off[-1]:.2f} to {off[0]:.2f}")
            rows.append([name, NAMES[optimizer], *row])
    return markdown(head, rows, left=2)


def steps(runs: list[Run]) -> str:
    head = ["steps with the token", "tokens", "expected", "Ember", "Adam"]
    edges = [f"{100 * x:g}%" for x in SHARES]
    inner = [f"{a} to {b}" for a, b in itertools.pairwise(edges)]
    rows = []
    for i, share in enumerate([f"below {edges[0]}", *inner, f"from {edges[-1]}"]):
        tokens, expected = (
            mean(runs, "ember", "steps", i, key)[0] for key in ("tokens", "expected")
        )
        medians = [
            mean(runs, optimizer, "steps", i, key)[MEDIAN]
            for optimizer, key in (
                ("ember", "touched"),
                ("adam", "touched"),
                ("adam", "per_touch"),
            )
        ]
        cells = [f"{tokens:,.0f}", *(f"{x:.2f}" for x in (expected, *medians))]
        rows.append([share, *cells])
    return markdown([*head, "Adam, path for each touch"], rows, left=1)


def groups(runs: list[Run]) -> Iterator[tuple[str, str]]:
    """Yields matrix and group of all rows that were followed."""
    for name, measured in runs[0]["matrices"].items():
        for group in measured["ray"]:
            yield name, group


def label(name: str, group: str) -> str:
    return name if group == "all" else f"{name}, {group}"


def mean(runs: list[Run], optimizer: str, *path: str | int) -> np.ndarray:
    """Returns the numbers at a path of each run of an optimizer: means over seeds."""
    found = []
    for run in runs:
        if run["settings"]["optimizer"] == optimizer:
            value: Any = run
            for key in path:
                value = value[key]
            found.append(np.atleast_1d(np.array(value, np.float64)))
    return np.mean(found, axis=0)
