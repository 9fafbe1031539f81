"""`Settings`: the configuration that identifies a run, and the finished runs by it."""

import dataclasses
import math
from pathlib import Path

from benchmarks.common import store
from benchmarks.common.store import Run
from benchmarks.study.arms import ARMS

VOCAB_SIZE = 4096
# Globs of each text; None is the source of Python's standard library.
LINUX = ".cache/linux-doc/usr/share/doc/**/*.rst.gz"
TEXTS = {"python": (None,), "linux": (LINUX,), "both": (None, LINUX)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on, except the code; its line in results.jsonl."""

    arm: str  # optimizer of the tables, a key of ARMS
    lr: float  # peak learning rate of the embedding, and of the head without head_lr
    body_lr: float  # peak learning rate of all other parameters
    head_lr: float | None = None
    head_arm: str | None = None  # optimizer of the head, if different
    body: str = "adamw"  # or muon
    tied: bool = False  # one table for input and output
    batch: int = 16  # sequences
    window: int = 64  # tokens in a sequence
    tokens: int = 262_144  # to train on
    width: int = 96
    layers: int = 2
    seed: int = 0  # of the initial values and of the order of the batches
    vocab: int | None = None  # size of the vocabulary, if not that of the config
    text: str = "python"  # or linux, or both
    weight_decay: float = 0.0  # of the tables
    frequencies: bool = False  # also compare predicted with actual token frequencies
    rounding: str | None = None  # of bfloat16 tables: nearest or stochastic
    practice: bool = False  # embedding N(0, 1) with RMSNorm behind it, head of zeros
    qk_norm: bool = False
    cautious: bool = False  # weight decay only where it agrees with the update
    accelerated: bool = False  # bfloat16, scanned layers, heads of 64: for a GPU or TPU
    track: bool = False  # also measure steps and tables over time, and rare tokens

    def __post_init__(self) -> None:
        for arm in (self.arm, self.head_arm or self.arm):
            if arm not in ARMS:
                raise ValueError(f"arm must be one of {list(ARMS)}, got {arm!r}.")
        if self.tied and self.head_lr is not None:
            raise ValueError("head_lr is given, but tied tables have only one rate.")

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
