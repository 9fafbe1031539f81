"""Tables and figure of docs/post_training.md."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from benchmarks.common.figures import color, plt, save
from benchmarks.common.intervals import difference
from benchmarks.common.search import HALVES
from benchmarks.common.store import Run
from benchmarks.common.tables import markdown
from benchmarks.post_training.comparison import (
    ARMS,
    FINETUNE,
    GRPO,
    RESULTS,
    SEEDS,
    Benchmark,
    Comparison,
    advantage,
    on_file,
)
from examples.lm.metrics import smooth

NEIGHBORS = {
    "best": (0, 0),
    "embedding / 3": (-1, 0),
    "embedding x 3": (1, 0),
    "head / 3": (0, -1),
    "head x 3": (0, 1),
}
NAMES = {"ember": "Ember, Adafactor decay", "adam": "AdamW"}


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    found = {}
    for benchmark in (FINETUNE, GRPO):
        comparisons = on_file(benchmark)
        name = f"post_training.{benchmark.name}"
        found[f"{name}_rates"] = rates(comparisons, benchmark.score)
        found[f"{name}_seeds"] = seeds(benchmark, comparisons)
    return found


def rates(comparisons: Sequence[Comparison], score: str) -> str:
    """Returns a table of the best pair of each arm and of its neighbors."""
    rows = []
    for comparison in comparisons:
        for arm in comparison.arms.values():
            embed, head = map(HALVES.index, arm.best)
            scores = [
                arm.searched[HALVES.rate(embed + i), HALVES.rate(head + j)][score]
                for i, j in NEIGHBORS.values()
            ]
            cells = [
                *(f"{rate:g}" for rate in (comparison.body_rate, *arm.best)),
                *(f"{x:.3f}" for x in scores),
            ]
            rows.append([*_prompts(comparison), NAMES[arm.name], *cells])
    first = _first(comparisons)
    head_line = [*first, "body", "embedding", "head", *NEIGHBORS]
    return markdown(head_line, rows, left=len(first))


def seeds(benchmark: Benchmark, comparisons: Sequence[Comparison]) -> str:
    """Returns a table of each arm at its best learning rates, by seed."""
    rows = []
    for comparison, planned in zip(
        comparisons, advantage(benchmark, comparisons), strict=True
    ):
        ember, adam = (comparison.arms[name].repeated for name in ARMS)
        constant = comparison.constant
        gap = difference(benchmark.losses(constant), benchmark.losses(adam))
        for name, runs, found in (
            (NAMES["ember"], ember, f"{planned}, {planned.verdict}"),
            ("Ember, b2 0.999", constant, str(gap)),
            (NAMES["adam"], adam, ""),
        ):
            scores = [run[benchmark.score] for run in runs]
            cells = [
                ", ".join(f"{x:.3f}" for x in scores),
                f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}",
                found,
                f"{runs[0]['table_state_bytes']:,}",
            ]
            rows.append([*_prompts(comparison), name, *cells])
    lost = "reward lost to AdamW" if benchmark.is_reward else "loss minus AdamW's"
    first = _first(comparisons)
    head = [*first, f"seeds {SEEDS[0]} to {SEEDS[-1]}", "mean", lost]
    return markdown([*head, "bytes of table state"], rows, left=len(first))


def draw() -> None:
    """Draws every seed at the best learning rates into `post_training.png`."""
    figure, panels = plt.subplots(
        ncols=1 + len(GRPO.cases), figsize=(13, 3.4), layout="constrained"
    )
    for run in _repeated(*on_file(FINETUNE)):
        # The loss before the first step would hide all others.
        logged = [r for r in run["losses"] if r["step"]]
        losses = [r["validation_loss"] for r in logged]
        _line(panels[0], run, [r["step"] for r in logged], losses)
    panels[0].set(title="finetuning", xlabel="step", ylabel="validation loss")
    for axes, comparison in zip(panels[1:], on_file(GRPO), strict=True):
        for run in _repeated(comparison):
            steps = range(1, len(run["rewards"]) + 1)
            _line(axes, run, steps, smooth(run["rewards"], 0.95))
        title = f"GRPO, {comparison.case['batch_size']} prompts a step"
        axes.set(title=title, xlabel="step", ylabel="reward", ylim=(0.4, 0.9))
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend()
    save(figure, RESULTS / "post_training.png")


def _line(axes: Axes, run: Run, x: Sequence[float], y: ArrayLike) -> None:
    arm, seed = run["settings"]["arm"], run["settings"]["seed"]
    label = NAMES[arm] if seed == SEEDS[0] else None
    axes.plot(x, y, color=color(arm), label=label, alpha=0.7)


def _repeated(comparison: Comparison) -> list[Run]:
    return [run for arm in comparison.arms.values() for run in arm.repeated]


def _first(comparisons: Sequence[Comparison]) -> list[str]:
    """Returns the titles of the columns that say what a row is."""
    return [*(["prompts"] if _prompts(comparisons[0]) else []), "tables"]


def _prompts(comparison: Comparison) -> list[str]:
    """Returns the cell of a case, if there are several."""
    return [str(n) for n in comparison.case.values()]
