"""Made-up runs of the study, on tiny shapes."""

import dataclasses
import math
from pathlib import Path

from benchmarks.study.rows import Study

from benchmarks.common import store
from benchmarks.study import settings
from benchmarks.study.arms import ARMS
from benchmarks.study.run import MODULES
from benchmarks.study.settings import Settings

VOCAB = 64
BEST = 0.1, 0.0056  # rates of embedding and head, away from where searches begin


def tiny(**changes) -> Settings:
    size = {"width": 16, "layers": 0, "batch": 4, "window": 8, "tokens": 160}
    rates = {"arm": "ember", "lr": 0.1, "b2": 0.99, "body_lr": 1e-3}
    return Settings(**rates | size | changes)


def made_up_loss(one_run: Settings) -> float:
    """The best shared learning rate is a hundred times the center of an arm."""
    if one_run.head_lr is None:
        center = ARMS[one_run.arm].center
        off = math.log10(one_run.lr / (100 * center if center > 0 else BEST[1]))
    else:
        rates = zip((one_run.lr, one_run.head_lr), BEST, strict=True)
        off = math.hypot(*(math.log10(rate / best) for rate, best in rates))
    ember_is_better = 0.1 * one_run.arm.startswith("ember")
    return 4 + off**2 + one_run.body_lr - ember_is_better + 0.01 * one_run.seed


def finish_all(names: list[str]) -> settings.Losses:
    losses: settings.Losses = {}
    modules = {stage: module for module in MODULES for stage in module.STAGES}
    for name in names:
        while todo := list(modules[name].missing(name, losses)):
            losses |= {one_run: made_up_loss(one_run) for one_run in todo}
    return losses


def record_of(one_run: Settings, value: float) -> dict:
    measured = [[value + 1, *[0.5] * 7], [value - 1, *[-0.5] * 7]]
    return {
        "settings": dataclasses.asdict(one_run),
        "frequency_errors": measured if one_run.frequencies else None,
        "validation_loss": value,
        "table_state_bytes": 1000,
        "seconds": 1.0,
        "machine": {"device": "cpu", "processor": "a processor"},
        "versions": {"jax": "1", "optax": "2"},
    }


def study_of(names: list[str], path: Path) -> Study:
    """Returns a study whose stages are finished; writes their runs."""
    path.unlink(missing_ok=True)
    for one_run, value in finish_all(names).items():
        store.append(path, record_of(one_run, value))
    return Study(settings.read(path))
