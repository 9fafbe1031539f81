"""What tells the runs of the study apart, and finished runs by it."""

import dataclasses
import math
from pathlib import Path

from benchmarks.common import store
from benchmarks.common.store import Run
from benchmarks.study.arms import ARMS

EDGES = (1, 4, 16, 64, 256, 1024)
"""Of the classes of frequency: how often a token has occurred in the run so far."""

# Where a text lies; None for the source of Python's standard library.
TEXTS = {"python": None, "linux": ".cache/linux-doc/usr/share/doc/**/*.rst.gz"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on, besides the code; its line in results.jsonl."""

    arm: str  # optimizer of the tables, a key of ARMS
    lr: float  # peak of its schedule, on the embedding if head_lr is given
    b2: float | None  # None for an arm that has none
    body_lr: float  # peak learning rate of everything but the tables
    head_lr: float | None = None  # of the head, if it has its own
    head_arm: str | None = None  # optimizer of the head, if it has its own
    body: str = "adamw"  # or muon
    tables: str = "both"  # what the arm trains; or embed or lm_head
    other_lr: float | None = None  # of Adam (0.9, 0.999) on the other table
    tied: bool = False  # one table for both
    batch: int = 16  # sequences
    window: int = 64  # tokens in a sequence
    tokens: int = 262_144  # to train on
    width: int = 96
    layers: int = 2
    seed: int = 0  # of the initial values and of the order of the batches
    config: str = "pretrain_small"  # the rest
    vocab: int | None = None  # size of the vocabulary, if not that of the config
    text: str = "python"  # or linux
    weight_decay: float = 0.0  # of the tables
    frequencies: bool = False  # whether to compare predicted with actual ones
    rounding: str | None = None  # of bfloat16 tables: nearest or stochastic

    def __post_init__(self) -> None:
        for arm in (self.arm, self.head_arm or self.arm):
            if arm not in ARMS:
                raise ValueError(f"arm is {arm!r}, but must be one of {list(ARMS)}.")
        if self.text not in TEXTS:
            raise ValueError(
                f"text is {self.text!r}, but must be one of {list(TEXTS)}."
            )
        if self.rounding not in (None, "nearest", "stochastic"):
            raise ValueError(
                f"rounding is {self.rounding!r}, but must be nearest, stochastic or"
                " None, for float32."
            )
        if self.tied and self.head_lr is not None:
            raise ValueError("head_lr is given, but tied tables have only one rate.")
        if self.tables not in ("both", "embed", "lm_head"):
            raise ValueError(
                f"tables is {self.tables!r}, but must be both, embed or lm_head."
            )
        if (self.tables == "both") != (self.other_lr is None):
            raise ValueError(
                "other_lr is the learning rate of Adam on the table that the arm does"
                f" not train, but tables is {self.tables!r} and other_lr"
                f" {self.other_lr}: give both or none."
            )

    @property
    def steps(self) -> int:
        return self.tokens // (self.batch * self.window)


Runs = dict[Settings, Run]
"""Finished runs."""

Losses = dict[Settings, float]
"""Validation losses of finished runs; infinite where training diverged."""


def read(path: Path) -> Runs:
    return {Settings(**run["settings"]): run for run in store.read(path)}


def losses_of(runs: Runs) -> Losses:
    losses = {settings: run["validation_loss"] for settings, run in runs.items()}
    return {k: math.inf if loss is None else loss for k, loss in losses.items()}
