"""Tables and figure of docs/post_training.md, from the results of two benchmarks.

    python -m benchmarks.post_training

Reads what `benchmarks.finetune` and `benchmarks.grpo` have written and draws
benchmarks/results/post_training.png.
"""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from benchmarks import results
from benchmarks.runs import Run
from benchmarks.tuning import (
    FINETUNE,
    GRPO,
    SEEDS,
    Arm,
    Benchmark,
    Comparison,
    on_file,
)
from examples.lm.metrics import plt, smooth

NAMES = {"ember": "Ember", "adam": "AdamW"}


def tables(benchmark: Benchmark, found: Comparison) -> list[str]:
    """Returns both tables of a benchmark."""
    return [sweep(found, benchmark.score), best(found, benchmark.score)]


def sweep(found: Comparison, score: str) -> str:
    """Returns a table with a row for an arm and a column for a learning rate."""
    rates = sorted({rate for arm in found.arms for rate in arm.swept})
    rows = []
    for arm in found.arms:
        scores = {rate: f"{run[score]:.3f}" for rate, run in arm.swept.items()}
        rows.append([*_first(arm).values(), *(scores.get(rate, "") for rate in rates)])
    return results.markdown(
        [*_first(found.arms[0]), *(f"{rate:g}" for rate in rates)], rows
    )


def best(found: Comparison, score: str) -> str:
    """Returns a table of the best learning rate of each arm, with its seeds."""
    rows = []
    for arm in found.arms:
        scores = [run[score] for run in arm.repeated]
        deviation = statistics.stdev(scores)
        cells = [
            f"{arm.best:g}",
            ", ".join(f"{x:.3f}" for x in scores),
            f"{statistics.mean(scores):.3f} ± {deviation:.3f}",
            f"{arm.repeated[0]['table_state_bytes']:,}",
        ]
        rows.append([*_first(arm).values(), *cells])
    seeds = f"seeds {SEEDS[0]} to {SEEDS[-1]}"
    head = ["learning rate", seeds, "mean", "bytes of table state"]
    return results.markdown([*_first(found.arms[0]), *head], rows)


def draw(finetune: Comparison, grpo: Comparison) -> None:
    """Draws every seed of the best learning rates."""
    figure, panels = plt.subplots(
        ncols=1 + len(GRPO.cases), figsize=(13, 3.4), layout="constrained"
    )
    for arm in finetune.arms:
        for run in arm.repeated:
            # The loss before the first step would hide all others.
            steps, losses = zip(
                *(
                    (r["step"], r["validation_loss"])
                    for r in run["losses"]
                    if r["step"]
                ),
                strict=True,
            )
            _line(panels[0], run, steps, losses)
    panels[0].set(title="finetuning", xlabel="step", ylabel="validation loss")
    for axes, case in zip(panels[1:], GRPO.cases, strict=True):
        for arm in grpo.arms:
            for run in arm.repeated if arm.case == case else []:
                steps = range(1, len(run["rewards"]) + 1)
                _line(axes, run, steps, smooth(run["rewards"], 0.95))
        title = f"GRPO, {case['batch_size']} prompts a step"
        axes.set(title=title, xlabel="step", ylabel="reward", ylim=(0.4, 0.9))
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(results.RESULTS / "post_training.png", dpi=150)
    plt.close(figure)


def _line(axes: Axes, run: Run, x: Sequence[float], y: ArrayLike) -> None:
    color = f"C{list(NAMES).index(run['arm'])}"
    label = NAMES[run["arm"]] if run["seed"] == SEEDS[0] else None
    axes.plot(x, y, color=color, label=label, alpha=0.7)


def _first(arm: Arm) -> dict[str, str]:
    """Returns the first cells of a row, by column."""
    prompts = arm.case.get("batch_size")
    first = {"prompts": str(prompts)} if prompts else {}
    return first | {"tables": NAMES[arm.name]}


def main() -> None:
    benchmarks = FINETUNE, GRPO
    comparisons = [on_file(benchmark) for benchmark in benchmarks]
    draw(*comparisons)
    for benchmark, found in zip(benchmarks, comparisons, strict=True):
        tried = ", ".join(f"{rate:g}" for rate in found.swept)
        print(f"{benchmark.name}: body {found.body_rate:g} of {tried}")
        print(*tables(benchmark, found), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
