"""The sweep behind the tuned values of configs/pretrain_small.py.

    python -m benchmarks.sweep.run body    # learning rate of the body, with two tables
    python -m benchmarks.sweep.run tables  # learning rate and b2 of the tables
    python -m benchmarks.sweep.run full    # the best of these at full length
    python -m benchmarks.sweep.run seeds   # Ember and Adam at their best, other seeds
    python -m benchmarks.sweep.report      # all runs as Markdown

Each finished run is a line in benchmarks/sweep/results.jsonl and is not run again.
`body` and `tables` use shortened runs and one seed.
"""

import argparse
import functools
import statistics
import tempfile
from pathlib import Path

from flax import nnx

from benchmarks.common import store
from benchmarks.common.store import Run, Settings
from benchmarks.sweep.plan import STAGES
from benchmarks.sweep.report import RESULTS
from configs.pretrain_small import get_config
from examples.lm import Config, data, training
from examples.lm.optimizer import table_state_bytes
from examples.lm.program import make_model


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


if __name__ == "__main__":
    main()
