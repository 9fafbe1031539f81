"""The sweep behind the tuned values of configs/pretrain_small.py.

    python -m benchmarks.sweep.run body    # learning rate of the body, with two tables
    python -m benchmarks.sweep.run tables  # learning rate and b2 of the tables
    python -m benchmarks.sweep.run full    # the best of these at full length
    python -m benchmarks.sweep.run seeds   # Ember and Adam at their best, other seeds
    python -m benchmarks.sweep.report      # all runs as Markdown

Each finished run is a line in benchmarks/sweep/results.jsonl and is not run again.
`body` and `tables` use shortened runs and one seed. The grids are fixed: a best rate at
an edge stays there.
"""

import argparse
import functools
import itertools
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path

from flax import nnx

from benchmarks.common import store
from benchmarks.common.store import Run, Settings
from benchmarks.sweep.report import BODY_RATE, RESULTS, SEEDS, SHORT
from configs.pretrain_small import get_config
from examples.lm import Config, data, training
from examples.lm.optimizer import table_state_bytes
from examples.lm.program import make_model


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


def execute(settings: Settings, tokens: data.Tokens) -> Run:
    """Trains one model and returns its results.

    Args:
      settings: what differs from the config, by dotted name.
      tokens: of the vocabulary of the config.
    """
    config: Config = get_config()
    config.update_from_flattened_dict(settings)
    params = nnx.state(nnx.eval_shape(lambda: make_model(config)), nnx.Param)
    with tempfile.TemporaryDirectory() as workdir:
        result = training.train(config, tokens, Path(workdir, config.tables.optimizer))
    if result.step < config.steps:
        raise SystemExit("Interrupted; the finished runs are kept.")
    last = [r["loss"] for r in result.records if "loss" in r][-20:]
    return {
        "validation_loss": result.validation_loss,
        "train_loss": statistics.mean(last),  # of the last 20 steps
        "seconds": round(result.seconds, 1),
        "table_state_bytes": table_state_bytes(config, params),
        "seed": config.seed,
        "config": config.to_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="stage", help=", ".join(STAGES))
    stages = parser.parse_args().stages
    unknown = set(stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stage {min(unknown)!r}, known: {list(STAGES)}")
    config: Config = get_config()
    tokens = data.load(**config.data)
    for settings in (settings for stage in stages for settings in STAGES[stage]()):
        execution = functools.partial(execute, settings, tokens)
        run = store.run_once(RESULTS, settings, execution)
        print(f"{run['validation_loss']:.3f} {settings}", flush=True)


def _short(name: str, rate: float, b2: float | None = None) -> Settings:
    return _tables(name, rate, b2) | {"body.learning_rate": BODY_RATE} | SHORT


def _full(name: str, rate: float, b2: float) -> Settings:
    config: Config = get_config()
    body = {"body.learning_rate": config.body.tuned[config.body.optimizer]}
    return _tables(name, rate, b2) | body | {"steps": config.steps}


def _tables(name: str, rate: float, b2: float | None) -> Settings:
    run = {"tables.optimizer": name, "tables.learning_rate": rate}
    return run if b2 is None else run | {"tables.b2": b2}


if __name__ == "__main__":
    main()
