"""Ember against AdamW on the token tables in GRPO, by batch size.

    python -m benchmarks.grpo

First the learning rate of the tables for each arm and batch size, with one seed; then
the best ones with other seeds. Finished runs are in benchmarks/results/grpo.json and
are not run again.
"""

import argparse
import json
import statistics
from importlib.metadata import version
from typing import Any

from flax import nnx

from benchmarks import results
from configs.grpo_small import get_config
from examples import grpo
from examples.lm import Config
from examples.lm.optimizer import table_state_bytes

ARMS = ("ember", "adam")
RATES = {  # of the tables
    4: (3e-4, 1e-3, 3e-3, 1e-2),
    16: (3e-4, 1e-3, 3e-3, 1e-2),
    64: (1e-3, 3e-3, 1e-2),
}
SEEDS = (1, 2)  # the sweep has seen seed 0
FILE = results.RESULTS / "grpo.json"

Run = dict[str, Any]


class Runs:
    """Runs on file, and the supervised model of each seed."""

    def __init__(self) -> None:
        self.done: list[Run] = []
        if FILE.exists():
            self.done = json.loads(FILE.read_text())["runs"]
        self._models: dict[int, nnx.Module] = {}

    def get(self, arm: str, batch_size: int, rate: float, seed: int) -> Run:
        """Returns a run, from the file if it has been done."""
        key = {
            "arm": arm,
            "batch_size": batch_size,
            "learning_rate": rate,
            "seed": seed,
        }
        for run in self.done:
            if run.items() >= key.items():
                return run
        config: Config = get_config()
        config.seed = seed
        config.rl.batch_size = batch_size
        config.rl.tables.update(optimizer=arm, learning_rate=rate)
        if seed not in self._models:
            self._models[seed] = grpo.supervise(config)
        model = self._models[seed]
        before = grpo.evaluate(config, model)
        result = grpo.reinforce(config, model)
        last = len(result.rewards) // 10
        run = key | {
            "body_learning_rate": config.rl.body.tuned.adamw,
            "steps": config.rl.steps,
            "first_reward": statistics.mean(result.rewards[:last]),
            "last_reward": statistics.mean(result.rewards[-last:]),
            "held_out_before": dict(zip(("reward", "solved"), before, strict=True)),
            "held_out": {"reward": result.held_out, "solved": result.solved},
            "table_state_bytes": table_state_bytes(
                config.rl, nnx.state(model, nnx.Param)
            ),
            "seconds": round(result.seconds, 1),
            "rewards": [round(reward, 4) for reward in result.rewards],
        }
        self.done.append(run)
        results.write(
            "grpo", {"google-tunix": version("google-tunix"), "runs": self.done}
        )
        print({k: v for k, v in run.items() if k != "rewards"}, flush=True)
        return run


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    runs = Runs()
    for batch_size, rates in RATES.items():
        for arm in ARMS:
            swept = [runs.get(arm, batch_size, rate, seed=0) for rate in rates]
            best = max(swept, key=lambda run: run["last_reward"])
            for seed in SEEDS:
                runs.get(arm, batch_size, best["learning_rate"], seed)


if __name__ == "__main__":
    main()
