"""Which runs the sweep consists of.

The grids are fixed: a best learning rate at an edge stays there.
"""

import itertools
from collections.abc import Iterable

from benchmarks.common.store import Settings
from configs.pretrain_small import get_config
from examples.lm import Config

SHORT = {"steps": 150, "eval_every": 150}  # runs of the search
BODY_RATE = 2e-3  # what the stage `body` found
SEEDS = (1, 2, 3)  # the search has seen seed 0


def body_runs() -> Iterable[Settings]:
    for rate, name in itertools.product((1e-3, 2e-3, 5e-3, 1e-2), ("ember", "adam")):
        yield _short(name, 3e-2, 0.999) | {"body.learning_rate": rate}


def table_runs() -> Iterable[Settings]:
    # Ember and Adam get the same grid.
    for name in ("ember", "adam"):
        for rate in (3e-3, 1e-2, 3e-2, 1e-1, 3e-1):
            yield _short(name, rate, 0.999)
        for b2, rate in itertools.product((0.99, 0.95), (1e-2, 3e-2, 1e-1)):
            yield _short(name, rate, b2)
    # Two more around the best of each.
    for rate in (5e-3, 2e-2):
        yield _short("ember", rate, 0.999)
    for rate in (5e-2, 2e-1):
        yield _short("adam", rate, 0.95)
    for rate in (1e-2, 3e-2, 1e-1):
        yield _short("adam_no_momentum", rate, 0.999)
        yield _short("sm3", 10 * rate)
    for rate in (0.1, 0.3, 1.0):
        yield _short("adafactor", rate)
    for rate in (3.0, 10.0, 30.0, 100.0):
        yield _short("sgd", rate)


def full_runs() -> Iterable[Settings]:
    """The best of the short runs, and their neighbors, at full length."""
    for rate in (5e-3, 1e-2, 2e-2):
        yield _full("ember", rate, 0.999)
    yield _full("ember", 1e-2, 0.95)
    for rate in (3e-2, 5e-2, 1e-1, 2e-1):
        yield _full("adam", rate, 0.95)


def seed_runs() -> Iterable[Settings]:
    config: Config = get_config()
    for seed, name in itertools.product(SEEDS, ("ember", "adam")):
        tuned = config.tables.tuned[name]
        yield _full(name, tuned.learning_rate, tuned.b2) | {"seed": seed}


STAGES = {
    "body": body_runs,
    "tables": table_runs,
    "full": full_runs,
    "seeds": seed_runs,
}


def _short(name: str, rate: float, b2: float | None = None) -> Settings:
    return _tables(name, rate, b2) | {"body.learning_rate": BODY_RATE} | SHORT


def _full(name: str, rate: float, b2: float) -> Settings:
    config: Config = get_config()
    body = {"body.learning_rate": config.body.tuned[config.body.optimizer]}
    return _tables(name, rate, b2) | body | {"steps": config.steps}


def _tables(name: str, rate: float, b2: float | None) -> Settings:
    run = {"tables.optimizer": name, "tables.learning_rate": rate}
    return run if b2 is None else run | {"tables.b2": b2}
