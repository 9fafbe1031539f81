"""The metrics of a run: a file of JSON Lines, TensorBoard, and a plot."""

import json
from collections.abc import Iterable, Mapping, Sequence

import matplotlib

matplotlib.use("Agg")  # writes files without a display

import numpy as np
from etils import epath
from matplotlib import pyplot as plt

from examples.lm.distributed import is_primary
from examples.lm.errors import UserError

Record = dict[str, float]


class MetricsLog:
    """Records of a run in memory and in a file; each has a "step".

    Only the primary process has a file. Objects in a bucket cannot grow: there the file
    is rewritten, and only by `flush`.
    """

    def __init__(self, path: epath.Path, step: int = 0, tensorboard: bool = False):
        """Opens the log of a run that continues at a step, and drops later records."""
        self._path = path
        self._is_remote = "://" in str(path)
        self.records = [r for r in read(path) if r["step"] <= step] if step else []
        self._n_written = 0
        self._board = None
        if tensorboard and is_primary():
            from tensorboardX import SummaryWriter  # slow to import

            directory = str(path.parent / "tensorboard")
            self._board = SummaryWriter(directory, purge_step=step + 1)
        if is_primary():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_all()

    def add(self, **record: float) -> None:
        self.records.append(record)

    def write(self) -> None:
        """Writes the new records, in one write, if the file can grow."""
        if self._is_remote or not is_primary():
            return
        with self._path.open("a") as file:
            file.write(_lines(self.records[self._n_written :]))
        self._n_written = self._show()

    def flush(self) -> None:
        """Writes all records: call this before a checkpoint is saved."""
        if self._is_remote and is_primary():
            self._write_all()
        self.write()

    def close(self) -> None:
        self.flush()
        if self._board:
            self._board.close()

    def _write_all(self) -> None:
        scratch = self._path.parent / "metrics.tmp"
        if self._is_remote:  # where a write is atomic
            scratch = self._path
        scratch.write_text(_lines(self.records))
        if scratch != self._path:
            scratch.replace(self._path)
        self._n_written = self._show()

    def _show(self) -> int:
        """Sends the new records to TensorBoard, and returns the number of all."""
        if self._board:
            for record in self.records[self._n_written :]:
                for name in record.keys() - {"step", "seconds"}:
                    self._board.add_scalar(name, record[name], int(record["step"]))
        return len(self.records)


def _lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def read(path: epath.Path) -> list[Record]:
    """Returns the records of a log, without a last line that was not finished."""
    text = path.read_text() if path.exists() else ""
    records = []
    for line in text.split("\n")[:-1]:
        try:
            record = json.loads(line)
            records.append({name: float(value) for name, value in record.items()})
            records[-1]["step"]  # raises KeyError
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged at {line[:60]!r}: delete it."
            ) from error
    return records


def last(records: Sequence[Record], name: str) -> float | None:
    """Returns the last value of a metric, None if there is none."""
    return next((r[name] for r in reversed(records) if name in r), None)


def plot(path: epath.Path, runs: Mapping[str, Sequence[Record]]) -> None:
    """Draws validation and smoothed training loss of some runs into a PNG."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (name, records) in enumerate(runs.items()):
        for metric, style in (("loss", "-"), ("validation_loss", "o-")):
            chosen = [(r["step"], r[metric]) for r in records if metric in r]
            steps, losses = np.array(chosen).reshape(-1, 2).T
            is_train = metric == "loss"
            axes.plot(
                steps,
                smooth(losses) if is_train else losses,
                style,
                color=f"C{number}",
                alpha=0.4 if is_train else 1.0,
                label=f"{name}, {'train' if is_train else 'validation'}",
            )
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    with path.open("wb") as file:
        figure.savefig(file, dpi=150)
    plt.close(figure)


def smooth(values: Iterable[float], decay: float = 0.9) -> np.ndarray:
    """Returns the exponential moving average, debiased as in Adam."""
    average, smoothed = 0.0, []
    for n, value in enumerate(values, start=1):
        average = decay * average + (1 - decay) * value
        smoothed.append(average / (1 - decay**n))
    return np.array(smoothed)
