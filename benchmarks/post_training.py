"""Tables and figure of docs/post_training.md, from the results of two benchmarks.

    python -m benchmarks.post_training

Reads what `benchmarks.finetune` and `benchmarks.grpo` have written, as far as they have
come; draws benchmarks/results/post_training.png.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence

from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from benchmarks import results
from benchmarks.runs import Run
from examples.lm.metrics import plt, smooth

NAMES = {"ember": "Ember", "adam": "AdamW"}
SWEPT = 0  # the seed of the sweeps


def read(name: str) -> list[Run]:
    return json.loads((results.RESULTS / f"{name}.json").read_text())["runs"]


def finetune_score(run: Run) -> float:
    return -run["validation_loss"]


def grpo_score(run: Run) -> float:
    return run["last_reward"]


SCORES = {"finetune": finetune_score, "grpo": grpo_score}


def sweep(runs: list[Run], score: Callable[[Run], float]) -> str:
    """Returns a table with a row for an arm and a column for a learning rate."""
    runs = [run for run in runs if run["seed"] == SWEPT]
    rates = sorted({run["learning_rate"] for run in runs})
    head = [*_first(runs[0]), *(f"{rate:g}" for rate in rates)]
    rows = []
    for arm in arms(runs):
        scores = {run["learning_rate"]: abs(score(run)) for run in arm}
        cells = (f"{scores[r]:.3f}" if r in scores else "" for r in rates)
        rows.append([*_first(arm[0]).values(), *cells])
    return results.markdown(head, rows)


def comparison(runs: list[Run], score: Callable[[Run], float]) -> str:
    """Returns a table of the best learning rate of each arm, over all its seeds."""
    rows = []
    for arm in arms(runs):
        arm = best(arm, score)
        scores = [abs(score(run)) for run in arm]
        cells = [
            f"{arm[0]['learning_rate']:g}",
            ", ".join(f"{x:.3f}" for x in scores),
            f"{statistics.mean(scores):.3f}",
            f"{arm[0]['table_state_bytes']:,}",
        ]
        rows.append([*_first(arm[0]).values(), *cells])
    head = ["learning rate", "by seed", "mean", "bytes of table state"]
    return results.markdown([*_first(runs[0]), *head], rows)


def best(arm: list[Run], score: Callable[[Run], float]) -> list[Run]:
    """Returns the runs of an arm at the learning rate that the sweep found best."""
    rate = max((r for r in arm if r["seed"] == SWEPT), key=score)["learning_rate"]
    runs = [run for run in arm if run["learning_rate"] == rate]
    return sorted(runs, key=lambda run: run["seed"])


def draw(finetune: list[Run], grpo: list[Run]) -> None:
    """Draws every seed of the best learning rates."""
    batch_sizes = sorted({run["batch_size"] for run in grpo})
    figure, panels = plt.subplots(
        ncols=1 + len(batch_sizes), figsize=(13, 3.4), layout="constrained"
    )
    for arm in arms(finetune):
        for run in best(arm, finetune_score):
            steps = [record["step"] for record in run["losses"]]
            losses = [record["validation_loss"] for record in run["losses"]]
            _line(panels[0], run, steps, losses)
    panels[0].set(title="finetuning", xlabel="step", ylabel="validation loss")
    for axes, batch_size in zip(panels[1:], batch_sizes, strict=True):
        for arm in arms(run for run in grpo if run["batch_size"] == batch_size):
            for run in best(arm, grpo_score):
                steps = range(1, len(run["rewards"]) + 1)
                _line(axes, run, steps, smooth(run["rewards"], 0.95))
        title = f"GRPO, {batch_size} prompts a step"
        axes.set(title=title, xlabel="step", ylabel="reward", ylim=(0.4, 0.9))
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(results.RESULTS / "post_training.png", dpi=150)
    plt.close(figure)


def _line(axes: Axes, run: Run, x: Sequence[float], y: ArrayLike) -> None:
    color = f"C{list(NAMES).index(run['arm'])}"
    label = NAMES[run["arm"]] if run["seed"] == SWEPT else None
    axes.plot(x, y, color=color, label=label, alpha=0.7)


def arms(runs: Iterable[Run]) -> list[list[Run]]:
    """Groups runs by batch size, where they have one, and table optimizer."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = run.get("batch_size", 0), list(NAMES).index(run["arm"])
        groups.setdefault(key, []).append(run)
    return [groups[key] for key in sorted(groups)]


def _first(run: Run) -> dict[str, str]:
    """Returns the first cells of a row, by column."""
    prompts = {"prompts": str(run["batch_size"])} if "batch_size" in run else {}
    return prompts | {"tables": NAMES[run["arm"]]}


def main() -> None:
    draw(read("finetune"), read("grpo"))
    for name, score in SCORES.items():
        runs = read(name)
        print(sweep(runs, score), comparison(runs, score), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
