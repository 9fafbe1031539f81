"""One run of GRPO: from its settings to its results."""

import functools
import statistics

from flax import nnx

from benchmarks.common.store import Run, Settings
from benchmarks.post_training.comparison import set_tables
from configs.grpo_small import get_config
from examples import grpo
from examples.lm import Config
from examples.lm.optimizer import table_state_bytes


@functools.cache
def supervised(seed: int) -> tuple[nnx.Module, tuple[float, float]]:
    """Returns the model before GRPO, and how well it does."""
    config = _config(seed)
    model = grpo.supervise(config)
    return model, grpo.evaluate(config, model)


def execute(settings: Settings) -> Run:
    """Trains one model and returns its results."""
    config = _config(settings["seed"])
    phase = config.rl
    phase.batch_size = settings["batch_size"]
    set_tables(phase.tables, settings)
    phase.body.learning_rate = settings["body_learning_rate"]
    model, before = supervised(settings["seed"])
    result = grpo.reinforce(config, model)
    last = len(result.rewards) // 10
    return {
        "steps": phase.steps,
        "first_reward": statistics.mean(result.rewards[:last]),
        "last_reward": statistics.mean(result.rewards[-last:]),
        "held_out_before": dict(zip(("reward", "solved"), before, strict=True)),
        "held_out": {"reward": result.held_out, "solved": result.solved},
        "table_state_bytes": table_state_bytes(phase, nnx.state(model, nnx.Param)),
        "rewards": [round(reward, 4) for reward in result.rewards],
    }


def _config(seed: int) -> Config:
    config = get_config()
    config.seed = seed
    return config
