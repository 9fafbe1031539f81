"""What runs of the second plan measured besides their loss: tables, rare tokens."""

import dataclasses
from collections.abc import Iterable

from matplotlib.figure import Figure

from benchmarks.common.figures import ADAM, EMBER, plt
from benchmarks.common.store import Run
from benchmarks.common.tables import markdown
from benchmarks.study import practice_report
from benchmarks.study.comparisons import Row, Study
from benchmarks.study.training import CLASSES

COLORS = {
    "ember_adafactor": EMBER,
    "ember": "#edae49",
    "adam80": ADAM,
    "adam": "#00798c",
}


ENOUGH = 1000
"""Tokens of a class, over all seeds, for a mean loss that is worth showing."""


def rare_tokens(study: Study) -> str:
    """Returns the loss on held-out tokens by their occurrences in training."""
    cells = []
    for _, row in practice_report.rows(study, "vocabulary"):
        by_seed = [run["held_out_by_class"] for run in runs_of(study, row)]
        means = map(mean_loss, zip(*by_seed, strict=True))
        cells.append([f"{row.settings.vocab:,}", row.title, *means])
    if not cells:
        return "Not measured yet."
    return markdown(["vocabulary", "tables", *CLASSES], cells, left=2)


def mean_loss(by_seed: Iterable[tuple[float | None, int]]) -> str:
    """Returns the mean over all tokens of a class; nothing for a few tokens."""
    found = [(loss, n) for loss, n in by_seed if loss is not None]
    total = sum(n for _, n in found)
    if total < ENOUGH:
        return ""
    return f"{sum(loss * n for loss, n in found) / total:.3f}"


def long_runs(study: Study) -> Figure:
    """RMS of both tables, and their largest step of a row, in the longest runs."""
    found = [row for _, row in practice_report.rows(study, "length")]
    longest = max((row.settings.steps for row in found), default=0)
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for row in found:
        arm = row.settings.arm
        if row.settings.steps != longest or arm not in COLORS:
            continue
        tables = runs_of(study, row)[0]["tables"]
        for j, table in enumerate(("embed", "lm_head")):
            for i in range(2):
                axes[i, j].plot(
                    [step for step, _ in tables],
                    [measured[table][i] for _, measured in tables],
                    color=COLORS[arm],
                    label=row.title,
                )
    for axis, title in zip(axes[0], ("embedding", "head"), strict=True):
        axis.set(title=title, ylabel="RMS of the table", ylim=(0, None))
    for axis in axes[1]:
        axis.set(xlabel="step", ylabel="largest RMS of a row's update", ylim=(0, None))
        axis.locator_params(axis="x", nbins=5)
    if found:
        axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"Tables in runs of {longest:,} steps")
    return figure


def runs_of(study: Study, row: Row) -> list[Run]:
    """Returns the records of a row's runs, one for each seed."""
    runs = [dataclasses.replace(row.settings, seed=seed) for seed in row.losses]
    return [study.runs[run] for run in runs]
