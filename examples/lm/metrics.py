"""What a run measures: a file of JSON Lines, and a plot."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # to files only: no display is needed

import numpy as np
from matplotlib import pyplot as plt

from examples.lm.errors import UserError
from examples.lm.processes import is_primary

Record = dict[str, float]


class MetricsLog:
    """Records of a run, in memory and as JSON Lines; each has a "step".

    Only the primary process has a file.
    """

    def __init__(self, path: Path, step: int = 0):
        """Opens a log at a step: what an earlier run wrote after it is dropped.

        Raises:
          UserError: the log cannot be read, or does not reach up to the step.
        """
        self.records: list[Record] = []
        self._path = path
        self._show: Callable[[Record], None] = _show_nowhere
        if not is_primary():
            return
        if step and path.exists():
            self.records = _read_up_to(path, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A process killed between these two lines leaves the old log.
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(r) + "\n" for r in self.records))
        scratch.replace(path)

    @contextlib.contextmanager
    def in_tensorboard(self, wanted: bool) -> Iterator[None]:
        """Shows what is written meanwhile in TensorBoard as well, if that is wanted."""
        run = self._path.parent if wanted else None
        step = int(last(self.records, "step") or 0)
        with tensorboard(run, step) as self._show:
            yield
        self._show = _show_nowhere

    def write(self, **record: float) -> None:
        self.records.append(record)
        if is_primary():
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        self._show(record)


@contextlib.contextmanager
def tensorboard(run: Path | None, step: int) -> Iterator[Callable[[Record], None]]:
    """Yields a function that shows a record in TensorBoard.

    Only that of the primary process does so.

    Args:
      run: directory of the run; None if there is to be no TensorBoard.
      step: at which the run begins.
    """
    if run is None or not is_primary():
        yield _show_nowhere
        return
    from tensorboardX import SummaryWriter  # slow to import

    # An earlier run may have got further than its last checkpoint.
    with SummaryWriter(str(run / "tensorboard"), purge_step=step + 1) as board:

        def show(record: Record) -> None:
            for name in record.keys() - {"step", "seconds"}:
                board.add_scalar(name, record[name], int(record["step"]))

        yield show


def _show_nowhere(record: Record) -> None:
    del record


def read(path: Path) -> list[Record]:
    """Returns the records of a log.

    Raises:
      UserError: there is none, or one of its lines is no record.
    """
    try:
        lines = path.read_text("utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    end = lines.pop()  # nothing, unless the process was killed while it wrote
    records = [_parse(line, f"{path}:{n}") for n, line in enumerate(lines, start=1)]
    if end:
        raise CutOff(f"{path}:{len(lines) + 1} is cut off: {end:.60}", records)
    return records


class CutOff(UserError):
    """The last record of a log is not complete, as when its process was killed."""

    def __init__(self, message: str, records: list[Record]):
        super().__init__(message)
        self.records = records  # before it


def _read_up_to(path: Path, step: int) -> list[Record]:
    """Returns the records up to the step of a checkpoint, which is to have them all.

    What was cut off after that step belongs to steps that are taken again.
    """
    cut_off = None
    try:
        records = read(path)
    except CutOff as error:
        records, cut_off = error.records, error
    found = {int(r["step"]) for r in records if "loss" in r}
    # It may begin later, where an earlier log has been deleted.
    if missing := set(range(min(found, default=step), step + 1)) - found:
        raise cut_off or UserError(
            f"{path} has no loss of step {min(missing)}, but the checkpoint is of step"
            f" {step}. Restore the file, or delete it to go on without what it holds."
        )
    return [r for r in records if r["step"] <= step]


def _parse(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if (
        not isinstance(record, dict)
        or "step" not in record
        or any(
            type(x) not in (int, float) or not math.isfinite(x) for x in record.values()
        )
    ):
        raise UserError(
            f'{where} is no record of finite numbers with a "step": {line:.60}'
        )
    return record


def last(records: Sequence[Record], name: str) -> float | None:
    """Returns the last value of a metric, None if there is none."""
    return next((r[name] for r in reversed(records) if name in r), None)


def final_loss(records: Sequence[Record], path: Path) -> float:
    """Returns the last validation loss.

    Raises:
      UserError: there is none in the log at `path`.
    """
    loss = last(records, "validation_loss")
    if loss is None:
        raise UserError(
            f"{path} has no validation loss: the run had not come to its first one."
        )
    return loss


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
