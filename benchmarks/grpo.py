"""Ember against AdamW on the token tables in GRPO, by batch size.

    python -m benchmarks.grpo

First the learning rate of the tables for each arm and batch size, with one seed; then
the best ones with other seeds. Finished runs are in benchmarks/results/grpo.json and
are not run again.
"""

import argparse
import functools
import itertools
import statistics

from absl import logging
from flax import nnx

from benchmarks.runs import Run, Runs
from configs.grpo_small import get_config
from examples import grpo
from examples.lm import Config
from examples.lm.optimizer import table_state_bytes

ARMS = ("ember", "adam")
BATCH_SIZES = (4, 16, 64)
RATES = (1e-3, 3e-3, 3e-4, 1e-2)  # of the tables
SEEDS = (1, 2)  # the sweep has seen seed 0


@functools.cache
def supervised(seed: int) -> tuple[nnx.Module, tuple[float, float]]:
    """Returns the model before GRPO, and how well it does."""
    config = _config(seed)
    model = grpo.supervise(config)
    return model, grpo.evaluate(config, model)


def execute(arm: str, batch_size: int, rate: float, seed: int) -> Run:
    """Trains one model and returns what is kept of it."""
    config = _config(seed)
    config.rl.batch_size = batch_size
    config.rl.tables.update(optimizer=arm, learning_rate=rate)
    model, before = supervised(seed)
    result = grpo.reinforce(config, model)
    last = len(result.rewards) // 10
    return {
        "body_learning_rate": config.rl.body.tuned.adamw,
        "steps": config.rl.steps,
        "first_reward": statistics.mean(result.rewards[:last]),
        "last_reward": statistics.mean(result.rewards[-last:]),
        "held_out_before": dict(zip(("reward", "solved"), before, strict=True)),
        "held_out": {"reward": result.held_out, "solved": result.solved},
        "table_state_bytes": table_state_bytes(config.rl, nnx.state(model, nnx.Param)),
        "rewards": [round(reward, 4) for reward in result.rewards],
    }


def _config(seed: int) -> Config:
    config = get_config()
    config.seed = seed
    return config


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    logging.set_verbosity(logging.ERROR)
    runs = Runs("grpo")

    def get(arm: str, batch_size: int, rate: float, seed: int) -> Run:
        settings = {"arm": arm, "batch_size": batch_size}
        settings |= {"learning_rate": rate, "seed": seed}
        return runs.get(settings, lambda: execute(arm, batch_size, rate, seed))

    swept = [
        get(arm, batch_size, rate, seed=0)
        for rate, batch_size, arm in itertools.product(RATES, BATCH_SIZES, ARMS)
    ]
    for seed, batch_size, arm in itertools.product(SEEDS, BATCH_SIZES, ARMS):
        runs_of = (r for r in swept if (r["arm"], r["batch_size"]) == (arm, batch_size))
        best = max(runs_of, key=lambda run: run["last_reward"])
        get(arm, batch_size, best["learning_rate"], seed)


if __name__ == "__main__":
    main()
