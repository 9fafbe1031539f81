"""The metrics of a run: a file of JSON Lines, TensorBoard, and a plot."""

import json
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")  # writes files without a display

from etils import epath
from matplotlib import pyplot as plt

from examples.lm.distributed import is_primary
from examples.lm.errors import explained

Record = dict[str, float]


class MetricsLog:
    """Records of a run in memory and in a file; each has a "step".

    Only the primary process has a file.
    """

    def __init__(self, path: epath.Path, step: int = 0, tensorboard: bool = False):
        """Opens the log of a run that continues at a step, and drops later records."""
        self._path, self._is_remote = path, "://" in str(path)
        self.records = [r for r in read(path) if r["step"] <= step] if step else []
        self._n_written, self._board = 0, None
        if tensorboard and is_primary():
            from tensorboardX import SummaryWriter  # slow to import

            directory = str(path.parent / "tensorboard")
            self._board = SummaryWriter(directory, purge_step=step + 1)
        self.write(everything=True)

    def add(self, **record: float) -> None:
        self.records.append(record)

    def write(self, everything: bool = False) -> None:
        """Appends the new records, or replaces the file by one with all of them.

        Objects in a bucket cannot grow: replace them, before a checkpoint is saved.
        """
        if not is_primary() or (self._is_remote and not everything):
            return
        new = self.records[self._n_written :]
        if everything:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._path.parent / "metrics.tmp"
            scratch.write_text(_lines(self.records))
            scratch.replace(self._path)
        else:
            with self._path.open("a") as file:
                file.write(_lines(new))
        self._n_written = len(self.records)
        if self._board:
            for record in new:
                for name in record.keys() - {"step", "seconds"}:
                    self._board.add_scalar(name, record[name], int(record["step"]))

    def close(self) -> None:
        self.write(everything=True)
        if self._board:
            self._board.close()


def _lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def read(path: epath.Path) -> list[Record]:
    """Returns the records of a log, without a last line that was not finished."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    records = []
    with explained(f"{path} is damaged", "Delete it."):
        for line in lines:
            record = {name: float(value) for name, value in json.loads(line).items()}
            records.append({"step": record.pop("step"), **record})
    return records


def last(records: Sequence[Record], name: str) -> float | None:
    """Returns the last value of a metric, None if there is none."""
    return next((r[name] for r in reversed(records) if name in r), None)


def plot(path: epath.Path, runs: Mapping[str, Sequence[Record]]) -> None:
    """Draws the training and validation losses of some runs into a PNG."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (name, records) in enumerate(runs.items()):
        for metric, style, alpha in (("loss", "-", 0.4), ("validation_loss", "o-", 1)):
            chosen = [record for record in records if metric in record]
            axes.plot(
                [record["step"] for record in chosen],
                [record[metric] for record in chosen],
                style,
                color=f"C{number}",
                alpha=alpha,
                label=f"{name}, {metric.replace('_', ' ')}",
            )
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    with path.open("wb") as file:
        figure.savefig(file, dpi=150)
    plt.close(figure)
