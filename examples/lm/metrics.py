"""What a run measures: a file of JSON Lines, and a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # to files only: no display is needed

import numpy as np
from matplotlib import pyplot as plt

from examples.lm.processes import is_primary

Record = dict[str, float]


class MetricsLog:
    """Records of a run, in memory and as JSON Lines; each has a "step".

    Only the primary process has a file.
    """

    def __init__(self, path: Path, step: int = 0):
        """Opens a log at a step: what an earlier run wrote after it is dropped."""
        self.records: list[Record] = []
        self._path = path
        if not is_primary():
            return
        if step:
            self.records = [r for r in read(path) if r["step"] <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        # A process killed between these two lines leaves the old log.
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(r) + "\n" for r in self.records))
        scratch.replace(path)

    def write(self, **record: float) -> None:
        self.records.append(record)
        if is_primary():
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[Record]:
    """Returns the records of a log; a line that was cut off ends it."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def last(records: Sequence[Record], name: str) -> float:
    """Returns the last value of a metric, 0 if there is none."""
    return next((r[name] for r in reversed(records) if name in r), 0.0)


def plot(path: Path, runs: Mapping[str, Sequence[Record]]) -> None:
    """Draws validation and smoothed training loss of some runs into a PNG."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (name, records) in enumerate(runs.items()):
        color = f"C{number}"
        steps, losses = _series(records, "loss")
        axes.plot(steps, smooth(losses), color=color, alpha=0.4, label=f"{name}, train")
        steps, losses = _series(records, "validation_loss")
        axes.plot(steps, losses, "o-", color=color, label=f"{name}, validation")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _series(records: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    chosen = [r for r in records if name in r]
    return [r["step"] for r in chosen], [r[name] for r in chosen]


def smooth(values: Sequence[float], decay: float = 0.9) -> np.ndarray:
    """Returns the exponential moving average, debiased as in Adam."""
    average, smoothed = 0.0, []
    for n, value in enumerate(values, start=1):
        average = decay * average + (1 - decay) * value
        smoothed.append(average / (1 - decay**n))
    return np.array(smoothed)
