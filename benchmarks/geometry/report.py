"""Tables of docs/geometry.md, from finished runs alone."""

import itertools
from typing import Any

import numpy as np

from benchmarks.common import store
from benchmarks.common.tables import markdown, paragraphs
from benchmarks.geometry import figures
from benchmarks.geometry.readings import COUNTS, SHARES
from benchmarks.geometry.results import (
    COST,
    NAMES,
    RESULTS,
    Runs,
    groups,
    label,
    optimizer_of,
    read,
)

MEDIAN = 2  # of the five quantiles
CASES = ("row x col", "if it were exact", "row alone", "shuffled")


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name. Numbers are means over seeds."""
    runs = store.read(RESULTS)
    make = (rays, autocorrelations, factorizations, steps, frequencies, losses)
    tables = {f"geometry.{function.__name__}": function(runs) for function in make}
    return tables | {"geometry.cost": cost(store.read_object(COST))}


def draw() -> None:
    runs = store.read(RESULTS)
    figures.draw_rays(runs, RESULTS.with_name("ray.png"))
    figures.draw_steps(runs, RESULTS.with_name("steps.png"))


def rays(runs: Runs) -> str:
    header = ["rows", "tables with", "share on a line", "random walk"]
    head, rows = [*header, "cosine to the displacement", "random walk"], []
    for name, group in groups(runs):
        for optimizer in NAMES:
            numbers = [
                read(runs, optimizer, "matrices", name, "ray", group, case, key)
                for key in ("share", "cosine")
                for case in ("actual", "walk")
            ]
            medians = [shown(x[MEDIAN]) for x in numbers]
            rows.append([label(name, group), NAMES[optimizer], *medians])
    return markdown(head, rows, left=2)


def evidence(runs: Runs) -> tuple[str, str]:
    """Returns finding and verdict on the claim that tokens move along a ray.

    It counts as reproduced where, in every group of rows, half of what a random walk
    leaves off the line lies on it.
    """
    found, on_line = [], []
    for group in ("rare", "middle", "frequent"):
        for name in ("embedding", "head"):
            at = "ember", "matrices", name, "ray", group
            share = read(runs, *at, "actual", "share")[MEDIAN]
            walk = read(runs, *at, "walk", "share")[MEDIAN]
            found.append(f"{label(name, group)} {share:.2f} ({walk:.2f})")
            on_line.append(share > (1 + walk) / 2)
    text = "variance of a row's path on one line, Ember (a random walk): "
    verdict = "reproduced at this scale" if all(on_line) else "not reproduced"
    return text + ", ".join(found), verdict


def autocorrelations(runs: Runs) -> str:
    head = ["rows", "tables with", "lag 1", "2", "3", "4", "random order"]
    rows = []
    for name, group in groups(runs):
        for optimizer in NAMES:
            at = optimizer, "matrices", name, "autocorrelation", group
            if min(read(runs, *at, "rows", over=np.min)) < 30:
                continue  # too few have been touched often enough
            numbers = [*read(runs, *at, "actual"), *read(runs, *at, "null")]
            row = [shown(x, "+.3f") for x in numbers]
            rows.append([label(name, group), NAMES[optimizer], *row])
    return markdown(head, rows, left=2)


def factorizations(runs: Runs) -> str:
    head = ["matrix", "tables with", *CASES, "update off by", "if it were exact"]
    rows = []
    for name in runs[0]["matrices"]:
        for optimizer in NAMES:
            at = optimizer, "matrices", name, "factorization"
            row = [shown(*read(runs, *at, case, "divergence")) for case in CASES]
            for case in CASES[:2]:
                off = np.exp(-read(runs, *at, case, "log_ratio") / 2)
                row.append(f"{off[-1]:.2f} to {off[0]:.2f}")
            rows.append([name, NAMES[optimizer], *row])
    return markdown(head, rows, left=2)


def steps(runs: Runs) -> str:
    head, rows = ["steps with the token", "tokens", "expected", "Ember"], []
    head += ["Adam", "Adam, path for each touch"]
    edges = [f"{100 * x:g}%" for x in SHARES]
    for i, share in enumerate(intervals(edges, "below", "from")):
        bins = {
            k: [r["steps"]["bins"][i] for r in runs if optimizer_of(r) == k]
            for k in NAMES
        }
        row = [
            mean(bins["ember"], "touched"),
            mean(bins["adam"], "touched"),
            mean(bins["adam"], "per_touch"),
        ]
        tokens, expected = (
            float(np.mean([x[key] for x in bins["ember"]]))
            for key in ("tokens", "expected")
        )
        medians = [shown(x[MEDIAN]) for x in row]
        rows.append([share, f"{tokens:,.0f}", shown(expected), *medians])
    return markdown(head, rows, left=1)


def frequencies(runs: Runs) -> str:
    head = ["occurrences in the run", "tokens", "places", "Ember", "if calibrated"]
    rows = []
    head += ["Adam", "if calibrated", "frequency in the run"]
    columns = [(k, case) for k in NAMES for case in ("model", "calibrated")]
    numbers = [
        read(runs, "ember", "frequencies", "tokens"),
        read(runs, "ember", "frequencies", "places"),
        *(read(runs, k, "frequencies", "error", case) for k, case in columns),
        read(runs, "ember", "frequencies", "error", "unigram"),
    ]
    labels = intervals([f"{x:,}" for x in COUNTS], "below", "from")
    labels[0] = "none"
    for count, tokens, places, *row in zip(labels, *numbers, strict=True):
        errors = [shown(x, "+.2f") for x in row]
        rows.append([count, f"{tokens:,.0f}", f"{places:,.0f}", *errors])
    return markdown(head, rows, left=1)


def losses(runs: Runs) -> str:
    head = ["tables with", "seed", "validation loss", "largest step of a token"]
    rows = []
    for run in runs:
        largest = shown(run["steps"]["largest"])
        seed, loss = run["settings"]["seed"], run["validation_loss"]
        rows.append([NAMES[optimizer_of(run)], str(seed), f"{loss:.3f}", largest])
    return markdown(head, rows, left=1)


def mean(bins: list[Any], key: str) -> np.ndarray:
    return np.mean([x[key] for x in bins], axis=0)


def intervals(edges: list[str], below: str, above: str) -> list[str]:
    inner = [f"{a} to {b}" for a, b in itertools.pairwise(edges)]
    return [f"{below} {edges[0]}", *inner, f"{above} {edges[-1]}"]


def shown(x: float, spec: str = ".2f") -> str:
    return "-" if np.isnan(x) else format(x, spec)


def cost(measured: dict[str, float]) -> str:
    """Returns what watching adds to a step, as a paragraph."""
    more = [100 * (measured[x] - 1) for x in ("flops_ratio", "bytes_ratio")]
    kept, parameters = (measured[x] / 1e6 for x in ("state_bytes", "parameter_bytes"))
    return paragraphs(
        f"""By XLA's count, watching adds {more[0]:.1f}% to the operations of a step
        and {more[1]:.1f}% to the bytes accessed. Its states take {kept:.1f} MB; the
        parameters take {parameters:.1f} MB."""
    )
