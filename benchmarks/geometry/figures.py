"""Figures of docs/geometry.md, from finished runs alone."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.figures import OTHER, color, plt, save
from benchmarks.geometry.results import NAMES, Runs, groups, label, optimizer_of, read


def draw_rays(runs: Runs, path: Path) -> None:
    """Draws how much of a line a trajectory is, next to its random walk."""
    figure, axes = plt.subplots(
        2, 2, figsize=(12, 6), sharex=True, sharey="row", layout="tight"
    )
    labels = [label(*x).replace(", ", "\n") for x in groups(runs)]
    for column, optimizer in enumerate(NAMES):
        for axis, key in zip(axes[:, column], ("share", "cosine"), strict=True):
            for side, (case, shade) in enumerate(
                (("actual", color(optimizer)), ("walk", OTHER))
            ):
                at = [
                    read(runs, optimizer, "matrices", *x[:1], "ray", x[1], case, key)
                    for x in groups(runs)
                ]
                positions = np.arange(len(at)) + 0.36 * (side - 0.5)
                boxes(axis, positions, at, shade)
        axes[0, column].set_title(f"tables trained with {NAMES[optimizer]}")
        axes[1, column].set_xticks(range(len(labels)), labels, fontsize=8.5)
    axes[0, 0].set_ylabel("share of the variance\non one line")
    axes[1, 0].set_ylabel("cosine of a step\nto the displacement")
    for axis in axes[0]:
        axis.axhline(1, color="0.3", linewidth=0.8, linestyle="--")
        axis.text(-0.4, 1.005, "a straight line", va="bottom", fontsize=8)
    figure.suptitle(
        "Do rows move along a line? Color: measured. Gray: random walks with the same"
        " step lengths."
    )
    save(figure, path)


def boxes(axis: Any, positions: Any, quantiles: list[Any], shade: str) -> None:
    keys = ("whislo", "q1", "med", "q3", "whishi")
    axis.bxp(
        [dict(zip(keys, x, strict=True)) for x in quantiles],
        positions=positions,
        widths=0.3,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": shade, "linewidth": 0.5},
        medianprops={"color": "black"},
        manage_ticks=False,
    )


def draw_steps(runs: Runs, path: Path) -> None:
    """Draws how far a step goes, by how often the token occurs."""
    b2, n_steps = (runs[0]["settings"][key] for key in ("b2", "steps"))
    figure, axis = plt.subplots(figsize=(7.5, 4.6), layout="tight")
    curves = (
        ("ember", "touched", "-", "Ember: a step"),
        ("adam", "per_touch", "--", "Adam: all steps until the token comes again"),
        ("adam", "touched", "-", "Adam: a step"),
    )
    for optimizer, key, style, text in curves:
        of = [x["steps"]["bins"] for x in runs if optimizer_of(x) == optimizer]
        at = np.mean([[x["share"] for x in bins] for bins in of], axis=0)
        low, _, median, _, high = np.mean(
            [[x[key] for x in bins] for bins in of], axis=0
        ).T
        shade = color(optimizer)
        axis.plot(at, median, style, color=shade, marker="o", ms=4, label=text)
        if style == "-":
            axis.fill_between(at, low, high, color=shade, alpha=0.2, linewidth=0)
    bins = runs[0]["steps"]["bins"]
    share, expected = ([x[key] for x in bins] for key in ("share", "expected"))
    axis.plot(
        share, expected, ":", color="black", label="expected of touches by chance"
    )
    bound = (1 - b2) ** -0.5
    axis.axhline(bound, color="black", linewidth=1)
    text = f"bound: $1/\\sqrt{{1-b_2}}$ = {bound:.1f}"
    axis.text(1, bound * 1.05, text, ha="right", va="bottom", fontsize=9)
    reached = bound * (1 - b2**n_steps) ** 0.5
    axis.axhline(reached, color="black", linewidth=0.8, linestyle="--")
    text = f"with the bias correction of step {n_steps}: {reached:.1f}"
    axis.text(1, reached * 1.05, text, ha="right", va="bottom", fontsize=9)
    axis.set(
        xscale="log",
        yscale="log",
        ylim=(0.03, 60),
        xlabel="share of the steps in which the token occurs",
        ylabel="size of a row's step / learning rate",
        title="Rare tokens take the long steps (embedding; band: 5 to 95 %)",
    )
    axis.legend(fontsize=9, loc="lower left")
    save(figure, path)
