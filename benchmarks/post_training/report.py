"""Tables and figure of docs/post_training.md."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from benchmarks.common.figures import color, plt, save
from benchmarks.common.store import Run
from benchmarks.common.tables import markdown
from benchmarks.post_training.comparison import (
    FINETUNE,
    GRPO,
    RESULTS,
    SEEDS,
    Arm,
    Comparison,
    on_file,
)
from examples.lm.metrics import smooth

NAMES = {"ember": "Ember", "adam": "AdamW"}


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    found = {}
    for benchmark in (FINETUNE, GRPO):
        comparison = on_file(benchmark)
        name = f"post_training.{benchmark.name}"
        found[f"{name}_rates"] = rates(comparison, benchmark.score)
        found[f"{name}_seeds"] = seeds(comparison, benchmark.score)
    return found


def rates(comparison: Comparison, score: str) -> str:
    """Returns a table with a row for each arm and a column for each learning rate."""
    columns = sorted({rate for arm in comparison.arms for rate in arm.swept})
    rows = []
    for arm in comparison.arms:
        scores = {rate: f"{run[score]:.3f}" for rate, run in arm.swept.items()}
        rows.append([*_first(arm).values(), *(scores.get(r, "") for r in columns)])
    head = [*_first(comparison.arms[0]), *(f"{rate:g}" for rate in columns)]
    return markdown(head, rows, left=len(head) - len(columns))


def seeds(comparison: Comparison, score: str) -> str:
    """Returns a table of the best learning rate of each arm, by seed."""
    rows = []
    for arm in comparison.arms:
        scores = [run[score] for run in arm.repeated]
        cells = [
            f"{arm.best:g}",
            ", ".join(f"{x:.3f}" for x in scores),
            f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}",
            f"{arm.repeated[0]['table_state_bytes']:,}",
        ]
        rows.append([*_first(arm).values(), *cells])
    head = ["learning rate", f"seeds {SEEDS[0]} to {SEEDS[-1]}", "mean"]
    head = [*_first(comparison.arms[0]), *head, "bytes of table state"]
    return markdown(head, rows, left=len(head) - 4)


def draw() -> None:
    """Draws every seed at the best learning rates into `post_training.png`."""
    figure, panels = plt.subplots(
        ncols=1 + len(GRPO.cases), figsize=(13, 3.4), layout="constrained"
    )
    for arm in on_file(FINETUNE).arms:
        for run in arm.repeated:
            # The loss before the first step would hide all others.
            logged = [r for r in run["losses"] if r["step"]]
            losses = [r["validation_loss"] for r in logged]
            _line(panels[0], run, [r["step"] for r in logged], losses)
    panels[0].set(title="finetuning", xlabel="step", ylabel="validation loss")
    arms = on_file(GRPO).arms
    for axes, case in zip(panels[1:], GRPO.cases, strict=True):
        for run in (run for arm in arms if arm.case == case for run in arm.repeated):
            steps = range(1, len(run["rewards"]) + 1)
            _line(axes, run, steps, smooth(run["rewards"], 0.95))
        title = f"GRPO, {case['batch_size']} prompts a step"
        axes.set(title=title, xlabel="step", ylabel="reward", ylim=(0.4, 0.9))
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend()
    save(figure, RESULTS / "post_training.png")


def _line(axes: Axes, run: Run, x: Sequence[float], y: ArrayLike) -> None:
    arm, seed = run["settings"]["arm"], run["settings"]["seed"]
    label = NAMES[arm] if seed == SEEDS[0] else None
    axes.plot(x, y, color=color(arm), label=label, alpha=0.7)


def _first(arm: Arm) -> dict[str, str]:
    """Returns the first cells of a row, by column."""
    prompts = arm.case.get("batch_size")
    first = {"prompts": str(prompts)} if prompts else {}
    return first | {"tables": NAMES[arm.name]}
