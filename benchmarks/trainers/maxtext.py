"""MaxText's own training loop on its synthetic data, a mesh of 2 x 2 devices."""

import json
import shutil
from pathlib import Path
from typing import Any

from flax import nnx
from maxtext.configs import pyconfig  # pyright: ignore[reportMissingImports]
from maxtext.optimizers import optimizers  # pyright: ignore[reportMissingImports]
from maxtext.trainers.pre_train import train as loop  # pyright: ignore[reportMissingImports]
from maxtext.utils import (  # pyright: ignore[reportMissingImports]
    maxtext_utils,
    model_creation_utils,
)

from benchmarks.trainers import checks
from benchmarks.trainers.checks import LEARNING_RATE, SAVED, STEPS
from examples.trainers import maxtext as plug_in
from examples.trainers import maxtext_switch

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


MODELS = """
    deepseek2-16b deepseek3-tiny gemma-2b gemma2-2b gemma3-4b gemma4-26b gemma4-e2b
    gpt-oss-20b gpt3-52k kimi-k2-1t llama2-7b llama3-8b llama3.1-8b llama4-17b-16e
    mistral-7b mixtral-8x7b olmo3-7b qwen2.5-1.5b qwen3-0.6b qwen3-30b-a3b
    qwen3-next-80b-a3b qwen3-omni-30b-a3b qwen3-vl-2b qwen3.5-35b-a3b
""".split()
UNSCANNED = ("gemma4-e2b", "qwen3-vl-2b")


def arguments(options: dict[str, Any]) -> list[str]:
    given = [f"{key}={value}" for key, value in (ANYWHERE | options).items()]
    return ["", str(CONFIGS / "base.yml"), *given]


def train(name: str, workdir: Path, **options: Any) -> checks.Trained:
    workdir.mkdir(exist_ok=True)
    metrics = workdir / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    use(name)
    config, recorder = loop.initialize(tiny(workdir, metrics_file=metrics, **options))
    state = loop.train_loop(config, recorder)
    losses = [json.loads(line)["learning/loss"] for line in metrics.open()]
    params, opt_state = nnx.as_pure(
        (nnx.state(state.model, nnx.Param), state.optimizer.opt_state)
    )
    return checks.Trained(losses, params, opt_state)


def tiny(workdir: Path, **options: Any) -> list[str]:
    return arguments(
        TINY
        | {
            "steps": STEPS,
            "checkpoint_period": SAVED,
            "async_checkpointing": False,
            "dataset_type": "synthetic",
            "base_output_directory": workdir,
            "learning_rate": LEARNING_RATE,
            "ici_fsdp_parallelism": 2,
            "ici_tensor_parallelism": 2,
        }
        | options
    )


def use(name: str) -> None:
    optimizers.get_optimizer = (
        plug_in.get_optimizer if name == "ember" else plug_in.get_builtin
    )
    plug_in.EMBED_LEARNING_RATE = checks.EMBED_RATE
    plug_in.HEAD_LEARNING_RATE = checks.HEAD_RATE


def run(workdir: Path) -> dict[str, Any]:
    result = checks.compare(train, drop_after, workdir, VOCAB_SIZE)
    result["switch"] = switch(workdir / "adamw", result["losses"]["adamw"])
    frozen = train(
        "ember",
        workdir / "frozen",
        trainable_parameters_mask="['decoder/layers','logits_dense']",
        skip_step_on_spikes=True,
    )
    checks.check_falls("a frozen embedding", frozen.losses)
    checks.check_tables(frozen.opt_state, "decoder/logits_dense/kernel")
    result["also"] = ["frozen embedding with spike skipping", "AdamW to Ember"]
    return result | {"families": checks.check_families(build, MODELS)}


def switch(workdir: Path, kept: list[float]) -> dict[str, list[float]]:
    """Continues AdamW's checkpoint with Ember, and returns the losses of both."""
    drop_after(workdir)
    use("adamw")
    maxtext_switch.switch(plug_in, "switched", tiny(workdir))
    losses = train("ember", workdir, run_name="switched").losses
    return checks.check_switch(kept, losses)


def build(name: str) -> tuple[Any, int]:
    """Returns the shapes of a model of MaxText's list."""
    options = {"model_name": name, "enable_checkpointing": False}
    if name in UNSCANNED:
        options["scan_layers"] = False
    config = pyconfig.initialize(arguments(options))
    mesh = maxtext_utils.get_mesh_from_config(config)
    _, model = model_creation_utils.create_nnx_abstract_model(config, mesh)
    return nnx.as_pure(nnx.state(model, nnx.Param)), config.vocab_size


def drop_after(workdir: Path) -> None:
    """Deletes the last checkpoint; the one named 6 has seven steps."""
    checkpoints = workdir / "run" / "checkpoints"
    for folder in checkpoints.iterdir():
        if folder.name.isdigit() and int(folder.name) > SAVED:
            shutil.rmtree(folder)
