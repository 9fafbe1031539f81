"""The metrics of a run: a file of JSON Lines, TensorBoard, and a plot."""

import json
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")  # writes files without a display

from etils import epath
from matplotlib import pyplot as plt

from examples.lm.distributed import is_primary
from examples.lm.errors import UserError

Record = dict[str, float]


class MetricsLog:
    """Records of a run in memory and in a file; each has a "step".

    Only the primary process has a file.
    """

    def __init__(self, path: epath.Path, step: int = 0, tensorboard: bool = False):
        """Opens the log of a run that continues at a step, and drops later records."""
        self._path = path
        self.records = [r for r in read(path) if r["step"] <= step] if step else []
        self._n_written, self._board = 0, None
        if tensorboard and is_primary():
            from tensorboardX import SummaryWriter  # slow to import

            directory = str(path.parent / "tensorboard")
            self._board = SummaryWriter(directory, purge_step=step + 1)
        self.flush()

    def add(self, **record: float) -> None:
        self.records.append(record)

    def write(self) -> None:
        """Appends the new records, except in a bucket, whose objects cannot grow."""
        if is_primary() and "://" not in str(self._path):
            with self._path.open("a") as file:
                file.write(_lines(self.records[self._n_written :]))
            self._show()

    def flush(self) -> None:
        """Replaces the file by one with all records: call this before a checkpoint."""
        if is_primary():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._path.parent / "metrics.tmp"
            scratch.write_text(_lines(self.records))
            scratch.replace(self._path)
            self._show()

    def close(self) -> None:
        self.flush()
        if self._board:
            self._board.close()

    def _show(self) -> None:
        """Sends the new records to TensorBoard."""
        if self._board:
            for record in self.records[self._n_written :]:
                for name in record.keys() - {"step", "seconds"}:
                    self._board.add_scalar(name, record[name], int(record["step"]))
        self._n_written = len(self.records)


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
        train = [(r["step"], r["loss"]) for r in records if "loss" in r]
        held_out = [
            (r["step"], r["validation_loss"]) for r in records if "validation_loss" in r
        ]
        for points, style, alpha, kind in (
            (_smooth(train), "-", 0.4, "train"),
            (held_out, "o-", 1.0, "validation"),
        ):
            x, y = [p[0] for p in points], [p[1] for p in points]
            axes.plot(
                x, y, style, color=f"C{number}", alpha=alpha, label=f"{name}, {kind}"
            )
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    with path.open("wb") as file:
        figure.savefig(file, dpi=150)
    plt.close(figure)


def _smooth(points: Sequence[tuple[float, float]], decay: float = 0.9) -> list:
    """Returns the exponential moving average, debiased as in Adam."""
    average, smoothed = 0.0, []
    for n, (step, value) in enumerate(points, start=1):
        average = decay * average + (1 - decay) * value
        smoothed.append((step, average / (1 - decay**n)))
    return smoothed
