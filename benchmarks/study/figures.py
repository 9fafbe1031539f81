"""The figures of docs/evidence.md that come from the study."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.figures import EMBER, OTHER, color, plt, save
from benchmarks.common.intervals import interval
from benchmarks.post_training.comparison import FINETUNE, GRPO, Benchmark, on_file
from benchmarks.post_training.report import NAMES
from benchmarks.study import stages
from benchmarks.study.arms import ARMS
from benchmarks.study.rows import (
    Row,
    Study,
    difference,
    interval_of_mean,
    setting,
    title,
)

BETTER = "#2a9d4a"


def draw_all(study: Study, directory: Path) -> list[Path]:
    """Draws what there are runs for; returns the files."""
    figures = {
        "learning_rates": learning_rates,
        "pareto": pareto,
        "ember_minus_adam": ember_minus_adam,
        "b2": decays,
    }
    paths = []
    for name, draw in figures.items():
        figure = draw(study)
        if figure:
            paths.append(directory / f"{name}.png")
            save(figure, paths[-1])
    return paths


def learning_rates(study: Study) -> Figure | None:
    """Loss against the learning rate of the tables, a small panel for each arm."""
    curves = {arm: stages.sweep({"arm": arm}, study.losses) for arm in ARMS}
    curves = {arm: curve for arm, curve in curves.items() if len(curve) > 2}
    if not curves:
        return None
    best = {arm: min(curve.values()) for arm, curve in curves.items()}
    order = sorted(curves, key=lambda arm: best[arm])
    columns = 5
    shape = math.ceil(len(order) / columns), columns
    figure, axes = plt.subplots(
        *shape, figsize=(11, 2.1 * shape[0] + 0.5), sharey=True, layout="constrained"
    )
    lowest = min(best.values())
    for axis, arm in zip(axes.flat, order, strict=False):
        rates, losses = zip(*curves[arm].items(), strict=True)
        axis.axhline(lowest, color="black", linewidth=0.6, linestyle=":")
        axis.semilogx(rates, losses, "o-", color=color(ARMS[arm].title), markersize=3)
        axis.set_title(title(arm, ARMS[arm].b2), fontsize=8)
        axis.text(0.5, 0.86, f"{best[arm]:.3f}", ha="center", transform=axis.transAxes)
        axis.tick_params(labelsize=7)
    for axis in list(axes.flat)[len(order) :]:
        axis.set_visible(False)
    axes.flat[0].set_ylim(lowest - 0.1, lowest + 1.4)
    figure.suptitle(
        "Validation loss by learning rate of the tables, best first; one seed."
        " Dotted: the best of all"
    )
    return figure


def pareto(study: Study) -> Figure | None:
    """Loss against bytes of state of the tables, in and after pretraining."""
    rows = [row for row in study.rows("seeds") if math.isfinite(row.mean)]
    if not rows:
        return None
    lowest = min(row.mean for row in rows)
    top = lowest + 0.6
    rows.sort(key=lambda row: row.mean)
    shown = [row for row in rows if row.mean < top]
    figure, (axis, *others) = plt.subplots(
        ncols=3, figsize=(14, 5), width_ratios=(3, 1, 1), layout="constrained"
    )
    columns: dict[int, tuple[float, float]] = {}  # of labels: where, and the last one
    for row in sorted(shown, key=lambda row: -row.state_bytes):
        place = int(math.log10(row.state_bytes + 100))
        columns.setdefault(place, (1.7 * row.state_bytes + 200, -math.inf))
    for row in shown:
        shade = color(row.title)
        half = interval_of_mean(row).high - row.mean
        point = row.state_bytes, row.mean
        axis.errorbar(*point, half, fmt="o", color=shade, capsize=2)
        # Labels of optimizers with about as much state are kept apart.
        place = int(math.log10(row.state_bytes + 100))
        x, below = columns[place]
        y = max(row.mean, below + 0.022)
        if row.state_bytes == 0:
            y += 0.022  # above the line of the front
        columns[place] = x, y
        label = f"{row.title}  {row.mean:.3f}"
        line = {"arrowstyle": "-", "color": shade, "lw": 0.5, "relpos": (0, 0.5)}
        axis.annotate(
            label, point, (x, y), fontsize=8, color=shade, va="center", arrowprops=line
        )
    shown.sort(key=lambda row: (row.state_bytes, row.mean))
    front = [row for i, row in enumerate(shown) if _is_best(row, shown[:i])]
    points = [(row.state_bytes, row.mean) for row in front]
    axis.step(*zip(*points, strict=True), where="post", color="black", linewidth=0.7)
    axis.set_xscale("symlog", linthresh=1e3)
    ticks = {0: "0", 1e4: "10 kB", 1e5: "100 kB", 1e6: "1 MB", 1e7: "10 MB"}
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_xlim(-100, 1.5e8)
    axis.set_ylim(lowest - 0.05, top)
    axis.set_xlabel("optimizer state of the token tables")
    axis.set_ylabel("validation loss, five seeds, 95% interval")
    above = [f"{row.title} {row.mean:.2f}" for row in rows if row.mean >= top]
    note = f" Above the frame: {', '.join(above)}." if above else ""
    axis.set_title(f"Pretraining: down and left is better.{note}", fontsize=10)
    for panel, benchmark in zip(others, (FINETUNE, GRPO), strict=True):
        after_training(panel, benchmark)
    return figure


def after_training(axis: Axes, benchmark: Benchmark) -> None:
    """Loss of finetuning, or 1 - reward of GRPO, against bytes of state."""
    *_, ember, adam = on_file(benchmark).arms  # the most prompts
    offset = 1 if benchmark is GRPO else 0
    for arm in (ember, adam):
        mean = interval([offset + benchmark.loss(run) for run in arm.repeated])
        at, shade = arm.repeated[0]["table_state_bytes"], color(arm.name)
        axis.errorbar(
            at, mean.mean, mean.high - mean.mean, fmt="o", color=shade, capsize=2
        )
        label = f"  {NAMES[arm.name]}  {mean.mean:.3f}"
        axis.annotate(label, (at, mean.mean), fontsize=8, color=shade, va="center")
    axis.set(xscale="log", xlabel="state of the token tables, bytes")
    axis.set_xlim(right=axis.get_xlim()[1] * 30)
    measure = "1 - reward" if benchmark is GRPO else "validation loss"
    axis.set_ylabel(f"{measure}, five seeds, 95% interval")
    prompts = ember.case.get("batch_size")
    axis.set_title(f"GRPO, {prompts} prompts" if prompts else "Finetuning", fontsize=10)


def ember_minus_adam(study: Study) -> Figure | None:
    """Paired differences between Ember and each Adam, in every setting."""
    pairs = list(study.against_adam())
    if not pairs:
        return None
    settings = list(dict.fromkeys(setting(ember) for ember, _ in pairs))
    figure, axis = plt.subplots(
        figsize=(8, 1.8 + 0.42 * len(settings)), layout="constrained"
    )
    for ember, adam in pairs:
        found = difference(ember, adam)
        is_999 = adam.settings.arm == "adam"
        axis.errorbar(
            found.mean,
            settings.index(setting(ember)) + (-0.15 if is_999 else 0.15),
            xerr=[[found.mean - found.low], [found.high - found.mean]],
            fmt="o" if is_999 else "s",
            markersize=5,
            color={"better": BETTER, "worse": EMBER}.get(found.verdict, OTHER),
            markerfacecolor=None if is_999 else "white",
            capsize=3,
        )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(settings)), settings, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("← Ember is better        Ember is worse →")
    axis.set_title(
        "Validation loss of Ember minus that of Adam with b2 0.999 (●) and 0.95 (□),\n"
        "five paired seeds, 95% intervals; gray: they include 0",
        fontsize=9,
    )
    return figure


def decays(study: Study) -> Figure | None:
    """Loss of Ember at its best learning rate by b2."""
    rows = [row for row in (study.arm("ember"), *study.rows("b2")) if row]
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: row.settings.b2 or 0)
    figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for row in rows:
        found = interval_of_mean(row)
        half = found.high - found.mean
        axis.errorbar(1 - (row.settings.b2 or 0), row.mean, half, fmt="o", color=EMBER)
    adafactor = study.arm("ember_growing")
    if adafactor:
        axis.axhline(adafactor.mean, color=OTHER, linestyle="--", linewidth=1)
        axis.annotate(
            adafactor.title,
            (0.02, adafactor.mean),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8,
        )
    axis.set_xscale("log")
    axis.invert_xaxis()
    axis.set_xticks(
        [1 - (row.settings.b2 or 0) for row in rows],
        [f"{row.settings.b2:g}" for row in rows],
    )
    axis.minorticks_off()
    axis.set_xlabel("b2 of Ember")
    axis.set_ylabel("validation loss, 95% interval")
    return figure


def _is_best(row: Row, others: list[Row]) -> bool:
    return all(row.mean < other.mean for other in others)
