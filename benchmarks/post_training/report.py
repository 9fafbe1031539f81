"""Tables and figure of docs/post_training.md."""

import statistics
from collections.abc import Iterator, Sequence

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
    Arm,
    Benchmark,
    Comparison,
    advantage,
    on_file,
)
from examples.lm.metrics import smooth

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
    for comparison, arm in _arms(comparisons):
        embed, head = map(HALVES.index, arm.best)
        pairs = {
            "best": (embed, head),
            "embedding / 3": (embed - 1, head),
            "embedding x 3": (embed + 1, head),
            "head / 3": (embed, head - 1),
            "head x 3": (embed, head + 1),
        }
        scores = {
            title: arm.searched[HALVES.rate(i), HALVES.rate(j)][score]
            for title, (i, j) in pairs.items()
        }
        cells = [
            f"{comparison.body_rate:g}",
            *(f"{rate:g}" for rate in arm.best),
            *(f"{x:.3f}" for x in scores.values()),
        ]
        first = _first(comparison, arm)
        head_line = [*first, "body", "embedding", "head", *scores]
        rows.append([*first.values(), *cells])
    return markdown(head_line, rows, left=len(first))


def seeds(benchmark: Benchmark, comparisons: Sequence[Comparison]) -> str:
    """Returns a table of each arm at its best learning rates, by seed."""
    rows = []
    for comparison, planned in zip(
        comparisons, advantage(benchmark, comparisons), strict=True
    ):
        ember, adam = (comparison.arms[name].repeated for name in ARMS)
        constant = comparison.constant
        gap = difference([*map(benchmark.loss, constant)], [*map(benchmark.loss, adam)])
        prompts = comparison.case.get("batch_size")
        for name, runs, found in (
            (NAMES["ember"], ember, f"{planned}, {planned.verdict}"),
            ("Ember, b2 0.999", constant, str(gap)),
            (NAMES["adam"], adam, ""),
        ):
            scores = [run[benchmark.score] for run in runs]
            cells = [
                name,
                ", ".join(f"{x:.3f}" for x in scores),
                f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}",
                found,
                f"{runs[0]['table_state_bytes']:,}",
            ]
            rows.append([str(prompts), *cells] if prompts else cells)
    lost = "reward lost to AdamW" if benchmark.is_reward else "loss minus AdamW's"
    head = ["tables", f"seeds {SEEDS[0]} to {SEEDS[-1]}", "mean", lost]
    head = (["prompts"] if benchmark.is_reward else []) + head
    return markdown([*head, "bytes of table state"], rows, left=len(head) - 3)


def draw() -> None:
    """Draws every seed at the best learning rates into `post_training.png`."""
    figure, panels = plt.subplots(
        ncols=1 + len(GRPO.cases), figsize=(13, 3.4), layout="constrained"
    )
    for _, arm in _arms(on_file(FINETUNE)):
        for run in arm.repeated:
            # The loss before the first step would hide all others.
            logged = [r for r in run["losses"] if r["step"]]
            losses = [r["validation_loss"] for r in logged]
            _line(panels[0], run, [r["step"] for r in logged], losses)
    panels[0].set(title="finetuning", xlabel="step", ylabel="validation loss")
    for axes, comparison in zip(panels[1:], on_file(GRPO), strict=True):
        for run in (run for _, arm in _arms([comparison]) for run in arm.repeated):
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


def _arms(comparisons: Sequence[Comparison]) -> Iterator[tuple[Comparison, Arm]]:
    for comparison in comparisons:
        for arm in comparison.arms.values():
            yield comparison, arm


def _first(comparison: Comparison, arm: Arm) -> dict[str, str]:
    """Returns the first cells of a row, by column."""
    prompts = comparison.case.get("batch_size")
    first = {"prompts": str(prompts)} if prompts else {}
    return first | {"tables": NAMES[arm.name]}
