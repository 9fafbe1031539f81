"""From finished runs of the study to its rows and to differences between them."""

import dataclasses
import statistics
from typing import NamedTuple

from benchmarks.common.intervals import Interval, interval
from benchmarks.study import shared, stages
from benchmarks.study.arms import ARMS
from benchmarks.study.settings import Runs, Settings, losses_of
from benchmarks.study.shared import Case
from configs import pretrain_small
from examples.lm import Config

_CONFIG: Config = pretrain_small.get_config()
NANOCHAT = ("adam80_995", "adam80_96")


class Row(NamedTuple):
    """One case of the study at its best learning rates."""

    name: str  # for `--row`
    case: Case
    settings: Settings  # of one of its runs
    losses: dict[int, float]  # by seed
    state_bytes: int  # of all tables

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses.values())

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.losses.values())

    @property
    def bytes_a_parameter(self) -> float:
        """Of the tables in training: weights, gradients and optimizer state."""
        weights = (
            (1 if self.settings.tied else 2)
            * self.settings.width
            * _CONFIG.data.vocab_size
        )
        size = 2 if self.settings.rounding else 4
        return 2 * size + self.state_bytes / weights

    @property
    def title(self) -> str:
        return title(self.settings)


class Study:
    """The finished runs of a file, arranged by the stages of the study."""

    def __init__(self, runs: Runs):
        self.runs = runs
        self.losses = losses_of(runs)

    def row(self, stage: str, case: Case) -> Row | None:
        """Returns a row, or None where not all of its seeds are finished."""
        module = shared if stage in shared.CASES else stages
        try:
            runs = module.seeded(case, self.losses)
        except shared.WaitingFor:
            return None
        if not all(run in self.losses for run in runs):
            return None
        losses = {run.seed: self.losses[run] for run in runs}
        state_bytes = self.runs[runs[0]]["table_state_bytes"]
        return Row(stages.name_of(stage, case), case, runs[0], losses, state_bytes)

    def rows(self, stage: str) -> list[Row]:
        """Returns the finished rows of a stage."""
        cases = (shared.CASES | stages.CASES)[stage]
        rows = [self.row(stage, case) for case in cases]
        return [row for row in rows if row]

    def arm(self, name: str) -> Row | None:
        """Returns the row of an arm in the main setting."""
        return self.row("arms", {"arm": name})


def difference(first: Row, second: Row, n_comparisons: int = 1) -> Interval:
    """Returns first - second, paired by seed."""
    differences = [first.losses[seed] - second.losses[seed] for seed in first.losses]
    return interval(differences, n_comparisons)


def interval_of_mean(row: Row) -> Interval:
    return interval(list(row.losses.values()))


def title(run: Settings) -> str:
    """Returns the optimizers of a run, that of the embedding first if they differ."""
    if (run.arm, run.head_arm) == NANOCHAT:
        return "Adam as in nanochat"
    if run.head_arm:
        return f"{ARMS[run.arm].title} / {ARMS[run.head_arm].title}"
    return f"Ember, b2 {run.b2:g}" if run.arm == "ember" else ARMS[run.arm].title


def setting(run: Settings) -> str:
    """Returns how a run differs from the main setting, in words."""
    defaults = {f.name: f.default for f in dataclasses.fields(Settings)}
    if run.config != defaults["config"]:
        return "124M parameters"
    if run.vocab:
        return f"{run.layers} layers, width {run.width}, vocabulary {run.vocab:,}"
    words = {
        "text": "natural English",
        "body": "body Muon",
        "tied": "tied tables",
        "batch": f"{run.batch} sequences of {run.window}",
        "width": f"width {run.width}",
        "tokens": f"{run.tokens:,} tokens",
        "weight_decay": f"weight decay {run.weight_decay:g}",
        "rounding": f"bfloat16 tables, {run.rounding} rounding",
    }
    changed = [key for key in words if getattr(run, key) != defaults[key]]
    return ", ".join(words[key] for key in changed) or "main setting"
