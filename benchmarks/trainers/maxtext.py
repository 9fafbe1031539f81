"""MaxText's own training loop on its synthetic data, a mesh of 2 x 2 devices."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from maxtext.configs import pyconfig  # pyright: ignore[reportMissingImports]
from maxtext.optimizers import optimizers  # pyright: ignore[reportMissingImports]
from maxtext.trainers.pre_train import train as loop  # pyright: ignore[reportMissingImports]
from maxtext.utils import model_creation_utils  # pyright: ignore[reportMissingImports]

from benchmarks.trainers import checks
from benchmarks.trainers.checks import LEARNING_RATE, SAVED, STEPS
from examples.trainers import maxtext as plug_in

PACKAGE = "maxtext"
VOCAB_SIZE = 4096
CONFIGS = Path(pyconfig.__file__).parent
TINY = {
    "base_emb_dim": 64,
    "base_mlp_dim": 128,
    "base_num_query_heads": 4,
    "base_num_kv_heads": 4,
    "base_num_decoder_layers": 2,
    "head_dim": 16,
    "vocab_size": VOCAB_SIZE,
    "max_target_length": 32,
    "per_device_batch_size": 2,
}
ANYWHERE = {
    "run_name": "run",
    "hardware": "cpu",
    "skip_jax_distributed_system": True,
    "attention": "dot_product",
    "enable_tensorboard": False,
    "log_config": False,
}


def arguments(options: dict[str, Any]) -> list[str]:
    given = [f"{key}={value}" for key, value in (ANYWHERE | options).items()]
    return ["", str(CONFIGS / "base.yml"), *given]


def train(name: str, workdir: Path, **options: Any) -> checks.Trained:
    workdir.mkdir(exist_ok=True)
    metrics = workdir / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    argv = arguments(
        TINY
        | {
            "steps": STEPS,
            "checkpoint_period": SAVED,
            "async_checkpointing": False,
            "dataset_type": "synthetic",
            "base_output_directory": workdir,
            "metrics_file": metrics,
            "learning_rate": LEARNING_RATE,
            "ici_fsdp_parallelism": 2,
            "ici_tensor_parallelism": 2,
        }
        | options
    )
    optimizers.get_optimizer = (
        plug_in.get_optimizer if name == "ember" else plug_in.get_builtin
    )
    plug_in.EMBED_RATE, plug_in.HEAD_RATE = checks.EMBED_RATE, checks.HEAD_RATE
    config, recorder = loop.initialize(argv)
    state = loop.train_loop(config, recorder)
    losses = [json.loads(line)["learning/loss"] for line in metrics.open()]
    params = nnx.filter_state(nnx.state(state.model), nnx.Param)
    pure, opt_state = nnx.as_pure((params, state.optimizer.opt_state))
    return checks.Trained(losses, pure, opt_state)


def run(workdir: Path) -> dict[str, Any]:
    result = checks.compare(train, drop_after, workdir, VOCAB_SIZE)
    return result | {"families": families()}


def families() -> int:
    """Returns of how many models in MaxText's list the labels are right."""
    return 0


def drop_after(workdir: Path) -> None:
    """Deletes the last checkpoint; MaxText calls the one after six steps 6."""
    checkpoints = workdir / "run" / "checkpoints"
    for folder in checkpoints.iterdir():
        if folder.name.isdigit() and int(folder.name) > SAVED:
            shutil.rmtree(folder)
