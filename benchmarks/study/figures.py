"""The figures of README.md, docs/evidence.md and docs/choosing.md."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.interpolate import griddata

from benchmarks.common.figures import ADAM, EMBER, plt, save
from benchmarks.common.intervals import Interval
from benchmarks.study import advice, long_runs, practice_report, stages
from benchmarks.study.comparisons import ADAMS, CANDIDATE, Study, planned, setting


def draw_all(study: Study, directory: Path) -> None:
    for draw in (lr_grid, by_setting, as_in_practice, long_runs.long_runs):
        save(draw(study), directory / f"{draw.__name__}.png")


def lr_grid(study: Study) -> Figure:
    """Loss by both learning rates, for Ember and for Adam."""
    found = {
        arm: stages.tried(stages.untuned({"arm": arm}, study.losses), study.losses)
        for arm in (CANDIDATE, ADAMS[0])
    }
    lowest = min(min(losses.values()) for losses in found.values())
    levels = [0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8]
    shades = plt.get_cmap("viridis_r")(np.linspace(0, 1, len(levels)))
    figure, axes = plt.subplots(
        ncols=2, figsize=(10, 4.4), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (arm, losses) in zip(axes, found.items(), strict=True):
        x, y = np.log10(list(losses)).T
        at = np.meshgrid(
            np.linspace(x.min(), x.max(), 200), np.linspace(y.min(), y.max(), 200)
        )
        above = np.array(list(losses.values())) - lowest
        surface = griddata((x, y), above, tuple(at), method="cubic")
        filled = axis.contourf(
            *at, surface, [-1, *levels[1:]], colors=shades, extend="max"
        )
        axis.plot(x, y, ".", color="black", markersize=2, alpha=0.5)
        best = min(losses, key=lambda pair: losses[pair])
        axis.plot(*np.log10(best), "*", color="white", mec="black", markersize=14)
        axis.annotate(
            f"{losses[best]:.3f} at {best[0]:g}, {best[1]:g}",
            np.log10(best),
            xytext=(0, 10),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
        axis.axline((-1, -1), slope=1, color="black", linewidth=1, linestyle=":")
        axis.set(title=study.arm(arm).title, xlabel="learning rate of the embedding")
        axis.set(xlim=(x.min(), x.max()), ylim=(y.min(), y.max()))
        for side, exponents in ((axis.xaxis, x), (axis.yaxis, y)):
            ticks = np.arange(np.ceil(exponents.min()), np.floor(exponents.max()) + 1)
            side.set_ticks(ticks, [f"{10.0**k:g}" for k in ticks])
    axes[0].set_ylabel("learning rate of the head")
    bar = figure.colorbar(filled, ax=axes, label="nats above the best of both")
    bar.set_ticks(levels[1:])
    figure.suptitle(
        "Validation loss by the learning rates of both tables, one seed. Dotted: one"
        " rate for both"
    )
    return figure


def by_setting(study: Study) -> Figure:
    """The candidate minus its rivals in every setting, as planned."""
    found = planned(study)
    shown = {"adam": ("o", ADAM, -0.15), "constant": ("s", EMBER, 0.15)}
    names = [setting(c.candidate.settings) for c in found["adam"]]
    figure, axis = plt.subplots(
        figsize=(8, 1.6 + 0.42 * len(names)), layout="constrained"
    )
    for key, (marker, shade, offset) in shown.items():
        for i, c in enumerate(found[key]):
            draw_interval(axis, c.difference, i + offset, marker, shade)
    label_rows(axis, names)
    axis.set_title(
        "Validation loss minus that of the better Adam (blue) and of Ember with b2"
        " 0.999 (red),\nfive paired seeds; simultaneous 95% intervals for each color;"
        " hollow: the interval includes 0",
        fontsize=9,
    )
    return figure


def as_in_practice(study: Study) -> Figure:
    """The candidate minus its rivals in a model as people build it."""
    main, *others = advice.situations(study)
    found = {
        f"{name}, {practice_report.where(main.best)}": x
        for name, x in practice_report.rivals(study).items()
    }
    found |= {
        f"better Adam, {practice_report.where(x.best)}": x.lead
        for x in others
        if x.lead
    }
    figure, axis = plt.subplots(
        figsize=(8, 1.6 + 0.42 * len(found)), layout="constrained"
    )
    for i, difference in enumerate(found.values()):
        draw_interval(axis, difference, i, "o", ADAM)
    label_rows(axis, list(found))
    axis.set_title(
        "Validation loss minus the rival's, each at its own best rates.\n"
        "Paired seeds, 95% intervals; hollow: the interval includes 0",
        fontsize=9,
    )
    return figure


def draw_interval(
    axis: Axes, interval: Interval, y: float, marker: str, shade: str
) -> None:
    mean, low, high = interval
    axis.errorbar(
        mean,
        y,
        xerr=[[mean - low], [high - mean]],
        fmt=marker,
        color=shade,
        markersize=5,
        markerfacecolor="white" if low < 0 < high else shade,
        capsize=3,
    )


def label_rows(axis: Axes, names: list[str]) -> None:
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("← Ember with Adafactor's decay is better        worse →")
