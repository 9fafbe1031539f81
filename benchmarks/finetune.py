"""Ember against AdamW on the token tables in finetuning.

    python -m benchmarks.finetune

First the learning rate of the tables for each arm, with one seed; then the best ones
with other seeds. Finished runs are in benchmarks/results/finetune.json and are not run
again.
"""

# pyright: reportMissingImports=false

import argparse
import functools
import itertools
import tempfile
from pathlib import Path

from absl import logging
from flax import nnx
from tunix.models.qwen3.model import Qwen3

from benchmarks.runs import Run, Runs
from configs.finetune_small import get_config
from examples import finetune
from examples.lm import Config
from examples.lm.optimizer import table_state_bytes

ARMS = ("ember", "adam")
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # of the tables
SEEDS = (1, 2)  # the sweep has seen seed 0


@functools.cache
def pretrained(seed: int) -> Qwen3:
    with tempfile.TemporaryDirectory() as directory:
        return finetune.pretrained(_config(seed), Path(directory, "pretrained"))


def execute(arm: str, rate: float, seed: int) -> Run:
    """Finetunes one model and returns what is kept of it."""
    config = _config(seed)
    config.finetuning.tables.update(optimizer=arm, learning_rate=rate)
    model = nnx.clone(pretrained(seed))
    params = nnx.state(model, nnx.Param)
    tasks = finetune.load_tasks(config)
    with tempfile.TemporaryDirectory() as directory:
        records = finetune.finetune(config, model, tasks, Path(directory, arm))
    losses = [r["validation_loss"] for r in records if "validation_loss" in r]
    return {
        "body_learning_rate": config.finetuning.body.tuned.adamw,
        "steps": config.finetuning.steps,
        "validation_loss_before": losses[0],
        "validation_loss": losses[-1],
        "lowest_validation_loss": min(losses),
        "table_state_bytes": table_state_bytes(config.finetuning, params),
        "losses": [r for r in records if "validation_loss" in r],
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
    runs = Runs("finetune")

    def get(arm: str, rate: float, seed: int) -> Run:
        settings = {"arm": arm, "learning_rate": rate, "seed": seed}
        return runs.get(settings, lambda: execute(arm, rate, seed))

    best = {
        arm: min(
            (get(arm, rate, seed=0) for rate in RATES),
            key=lambda run: run["validation_loss"],
        )["learning_rate"]
        for arm in ARMS
    }
    for seed, arm in itertools.product(SEEDS, ARMS):
        get(arm, best[arm], seed)


if __name__ == "__main__":
    main()
