"""One run of finetuning: from its settings to its results."""

# pyright: reportMissingImports=false

import functools
import tempfile
from pathlib import Path

from flax import nnx
from tunix.models.qwen3.model import Qwen3

from benchmarks.common.store import Run, Settings
from benchmarks.post_training.comparison import set_tables
from configs.finetune_small import get_config
from examples import finetune
from examples.lm import Config
from examples.lm.optimizer import table_state_bytes


@functools.cache
def pretrained(seed: int) -> Qwen3:
    with tempfile.TemporaryDirectory() as directory:
        return finetune.pretrained(_config(seed), Path(directory, "pretrained"))


def execute(settings: Settings) -> Run:
    """Finetunes one model and returns its results."""
    config, arm = _config(settings["seed"]), settings["arm"]
    phase = config.finetuning
    set_tables(phase.tables, settings)
    phase.body.learning_rate = settings["body_learning_rate"]
    model = nnx.clone(pretrained(settings["seed"]))
    params = nnx.state(model, nnx.Param)
    tasks = finetune.load_tasks(config)
    with tempfile.TemporaryDirectory() as directory:
        records = finetune.finetune(config, model, tasks, Path(directory, arm))
    losses = [r["validation_loss"] for r in records if "validation_loss" in r]
    return {
        "steps": phase.steps,
        "validation_loss_before": losses[0],
        "validation_loss": losses[-1],
        "lowest_validation_loss": min(losses),
        "table_state_bytes": table_state_bytes(phase, params),
        "losses": [r for r in records if "validation_loss" in r],
    }


def _config(seed: int) -> Config:
    config = get_config()
    config.seed = seed
    return config
