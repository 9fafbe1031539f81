"""The figures of docs/evidence.md and docs/choosing.md that come from the study."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.interpolate import griddata

from benchmarks.common.figures import ADAM, EMBER, OTHER, color, plt, save
from benchmarks.study import rare, rates, rounding, stages
from benchmarks.study.families import ADAMS, CANDIDATE, families
from benchmarks.study.rows import Study, interval_of_mean, setting, title

BETTER = "#2a9d4a"
BOTH = {
    CANDIDATE: ("Ember, Adafactor decay", EMBER),
    ADAMS[0]: ("Adam (0.8, 0.95)", ADAM),
}


def draw_all(study: Study, directory: Path) -> list[Path]:
    """Draws what there are runs for; returns the files."""
    figures = {
        "plane": plane,
        "off": off,
        "by_setting": by_setting,
        "pareto": pareto,
        "rare": rare_tokens,
        "rounding": rounded,
    }
    paths = []
    for name, draw in figures.items():
        figure = draw(study)
        if figure:
            paths.append(directory / f"{name}.png")
            save(figure, paths[-1])
    return paths


def plane(study: Study) -> Figure | None:
    """Loss over the plane of both learning rates, for Ember and for Adam."""
    found = {arm: rates.plane(study, arm) for arm in BOTH}
    if min(map(len, found.values())) < 12:
        return None
    lowest = min(min(losses.values()) for losses in found.values())
    levels = [0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8]
    shades = plt.get_cmap("viridis_r")(np.linspace(0, 1, len(levels)))
    figure, axes = plt.subplots(
        ncols=2, figsize=(10, 4.4), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (arm, losses) in zip(axes, found.items(), strict=True):
        # On logarithms: rates are as far apart as their ratio says.
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
        axis.set(title=BOTH[arm][0], xlabel="learning rate of the embedding")
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


def off(study: Study) -> Figure | None:
    """What a learning rate costs that is off by a factor."""
    found = {arm: rates.costs_off(study, arm) for arm in BOTH}
    if not all(found.values()):
        return None
    figure, axes = plt.subplots(
        ncols=3, figsize=(10, 3.4), sharey=True, layout="constrained"
    )
    where = {
        "rate of the embedding": (1, 0),
        "rate of the head": (0, 1),
        "both rates": (1, 1),
    }
    for axis, (name, (a, b)) in zip(axes, where.items(), strict=True):
        for arm, costs in found.items():
            points = {x: costs[x**a, x**b] for x in stages.OFF} | {1.0: 0.0}
            xs = sorted(points)
            label, shade = BOTH[arm]
            axis.plot(xs, [points[x] for x in xs], "o-", color=shade, label=label)
        axis.set_xscale("log", base=2)
        axis.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "best", "2", "4"])
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set(title=f"{name} off by", xlabel="factor")
    axes[0].set_ylabel("nats above the best pair")
    axes[0].legend(fontsize=8)
    return figure


def by_setting(study: Study) -> Figure | None:
    """The candidate minus its rivals in every setting, as planned."""
    found = families(study)
    shown = {"adam": ("o", ADAM, -0.15), "constant": ("s", EMBER, 0.15)}
    names = [
        setting(c.candidate.settings) for key in shown for c in found[key].finished
    ]
    names = list(dict.fromkeys(names))
    if not names:
        return None
    figure, axis = plt.subplots(
        figsize=(8, 1.6 + 0.42 * len(names)), layout="constrained"
    )
    for key, (marker, shade, offset) in shown.items():
        for c in found[key].finished:
            mean, low, high = c.difference
            axis.errorbar(
                mean,
                names.index(setting(c.candidate.settings)) + offset,
                xerr=[[mean - low], [high - mean]],
                fmt=marker,
                color=shade,
                markersize=5,
                markerfacecolor="white" if low < 0 < high else shade,
                capsize=3,
            )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("← Ember with Adafactor's decay is better        worse →")
    axis.set_title(
        "Validation loss minus that of the better Adam (blue) and of Ember with b2"
        " 0.999 (red),\nfive paired seeds; simultaneous 95% intervals for each color;"
        " hollow: the interval includes 0",
        fontsize=9,
    )
    return figure


def pareto(study: Study) -> Figure | None:
    """Loss against bytes of state of the tables, in the main setting."""
    rows = [row for row in study.rows("arms") if math.isfinite(row.mean)]
    # Without the arm that is a point on top of another: a softmax sees no mean.
    rows = [row for row in rows if row.settings.head_arm != "ember_centered"]
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: row.mean)
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    gap = 0.05 * (rows[-1].mean - rows[0].mean)  # between labels of a column
    below: dict[float, float] = {}  # the last of them, by where the column is
    for row in rows:
        shade = color(row.title)
        half = interval_of_mean(row).high - row.mean
        axis.errorbar(row.state_bytes, row.mean, half, fmt="o", color=shade, capsize=2)
        place = next(x for x in (3e2, 6e4, 2e7) if row.state_bytes < x)
        y = below[place] = max(row.mean, below.get(place, 0) + gap)
        label = axis.annotate(
            f"{row.title}  {row.mean:.3f}",
            (row.state_bytes, row.mean),
            (place, y),
            fontsize=8,
            color=shade,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": OTHER,
                "lw": 0.5,
                "relpos": (0, 0.5),
            },
        )
        label.set_in_layout(False)
    axis.set_xscale("symlog", linthresh=1e3)
    ticks = {0: "0", 1e4: "10 kB", 1e5: "100 kB", 1e6: "1 MB", 1e7: "10 MB"}
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_xlim(-100, 5e9)
    axis.set_ylim(top=max(below.values()) + gap)
    axis.set_xlabel("optimizer state of both token tables")
    axis.set_ylabel("validation loss, five seeds, 95% interval")
    axis.set_title("Each optimizer at its best pair of learning rates")
    return figure


def rare_tokens(study: Study) -> Figure | None:
    """How often tokens are predicted, compared with how often they occur."""
    loss, found = rare.at_equal_loss(study)
    if not found:
        return None
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for row, errors in found:
        dashed = row.settings.arm in ("ember", "adam")
        axis.plot(
            range(len(errors)),
            errors,
            "o--" if dashed else "o-",
            color=color(title(row.settings)),
            label=f"{row.title} (ends at {row.mean:.3f})",
        )
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(rare.CLASSES)), rare.CLASSES, fontsize=8)
    axis.set_xlabel("occurrences of a token in the run so far")
    axis.set_ylabel("log(predicted / actual)")
    axis.legend(fontsize=8)
    axis.set_title(f"Frequencies of tokens when the validation loss is {loss:.2f}")
    return figure


def rounded(study: Study) -> Figure | None:
    """Loss by the bytes that a parameter of a table takes in training."""
    found = rounding.found(study)
    if not any(x.row.settings.rounding for rows in found for x in rows):
        return None
    figure, panels = plt.subplots(
        ncols=len(found), figsize=(10, 3), squeeze=False, layout="constrained"
    )
    markers = {None: "o", "nearest": "s", "stochastic": "D"}
    for axes, rows in zip(panels[0], found, strict=True):
        for x in rows:
            kind = x.row.settings.rounding
            aside = 0.4 if kind == "stochastic" else 0  # of the same size as nearest
            half = interval_of_mean(x.row).high - x.row.mean
            axes.errorbar(
                *(x.row.bytes_a_parameter + aside, x.row.mean, half),
                fmt=markers[kind],
                color=color(x.tables),
                capsize=2,
                label=x.tables,
            )
        axes.set(title=rows[0].setting, xlim=(0, 18), xlabel="bytes a parameter")
        axes.set_xticks([0, 4, 8, 12, 16])
        axes.margins(y=0.25)
    panels[0, 0].set_ylabel("validation loss, 95% interval")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    return figure
