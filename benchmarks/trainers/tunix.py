"""tunix: full finetuning, LoRA, DPO and GRPO of a tiny Qwen3 on 2 x 2 devices."""

# pyright: reportMissingImports=false

import contextlib
import dataclasses
import importlib
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import qwix
from flax import nnx
from tunix.cli.utils import model as cli_model
from tunix.examples.data import translation_dataset
from tunix.models.qwen3.model import ModelConfig, Qwen3
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.sft import peft_trainer
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig, TrainingInput
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

import ember_optax
from benchmarks.trainers import checks, sorting, text
from benchmarks.trainers.checks import STEPS
from examples.trainers import tunix as plug_in

PACKAGE = "google-tunix"
TINY = {
    "num_layers": 2,
    "embed_dim": 64,
    "hidden_dim": 128,
    "num_heads": 4,
    "head_dim": 16,
    "num_kv_heads": 2,
    "rope_theta": 10_000,
    "norm_eps": 1e-6,
}
FEW = 3  # steps of DPO and GRPO


def make_model(vocab_size: int) -> Qwen3:
    """Makes a small Qwen3 with random parameters."""
    rngs = nnx.Rngs(0)
    made = Qwen3(ModelConfig(vocab_size=vocab_size, **TINY), rngs=rngs)
    # tunix expects weights to be loaded: its MLPs are all zeros, which no gradient
    # ever moves.
    init = jax.nn.initializers.lecun_normal()
    for _, module in nnx.iter_graph(made):
        if isinstance(module, nnx.Linear):
            module.kernel[...] = init(rngs.params(), module.kernel.shape)
    return made


def model(vocab_size: int = text.VOCAB_SIZE) -> nnx.Module:
    """Makes a model, sharded as tunix expects if there is a mesh."""
    made = make_model(vocab_size)
    mesh = jax.sharding.get_mesh()
    if not mesh.empty:
        state = nnx.state(made)
        shardings = nnx.get_named_sharding(state, mesh)
        nnx.update(made, jax.device_put(state, shardings))
    return made


def lora() -> nnx.Module:
    provider = qwix.LoraProvider(module_path=".*(q|gate)_proj", rank=2, alpha=2.0)
    example = model_input(text.batches()[0, :1])
    del example["input_mask"]
    return qwix.apply_lora_to_model(model(), provider, **example, cache=None)


def optimizer(name: str, frozen: str | None = None) -> optax.GradientTransformation:
    if name == "ember":
        tx = plug_in.make_optimizer(*checks.SCHEDULES)
        return checks.freeze(tx, frozen) if frozen else tx
    adamw = optax.adamw(checks.SCHEDULES[0])
    if name == "two_adamw":
        return optax.multi_transform(
            {"table": adamw, "body": adamw}, ember_optax.label_token_tables
        )
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def model_input(tokens: Any) -> dict[str, Any]:
    everything = jnp.ones(tokens.shape, bool)
    return {
        "input_tokens": tokens,
        "input_mask": everything,
        "positions": build_positions_from_mask(everything),
        "attention_mask": make_causal_attn_mask(everything),
    }


def finetune(
    name: str, workdir: Path, made: nnx.Module | None = None, frozen: str | None = None
) -> checks.Trained:
    config = TrainingConfig(
        max_steps=STEPS,
        eval_every_n_steps=100,
        checkpoint_root_directory=str(workdir.absolute()),
        checkpointing_options=ocp.CheckpointManagerOptions(
            save_interval_steps=checks.SAVED, max_to_keep=3
        ),
    )
    trainer = PeftTrainer(made or model(), optimizer(name, frozen), config)
    trainer = trainer.with_gen_model_input_fn(model_input)
    trainer.train(list(text.batches()), None)
    return trained(trainer)


def trained(trainer: PeftTrainer) -> checks.Trained:
    losses = trainer.metrics_logger.get_metric_history("", "loss", "train").tolist()
    params, opt_state = nnx.as_pure(
        (nnx.state(trainer.model, nnx.Param), trainer.optimizer.opt_state)
    )
    return checks.Trained(losses, params, opt_state)


def prefer() -> None:
    """Runs DPO."""
    rng = np.random.default_rng(1)

    def batch() -> TrainingInput:
        ids = rng.integers(3, text.VOCAB_SIZE, (3, 4, 6))
        mask = np.ones((4, 6), bool)
        return TrainingInput(
            prompt_ids=ids[0],
            prompt_mask=mask,
            chosen_ids=ids[1],
            chosen_mask=mask,
            rejected_ids=ids[2],
            rejected_mask=mask,
        )

    config = DPOTrainingConfig(
        eval_every_n_steps=100,
        max_steps=FEW,
        max_prompt_length=6,
        max_response_length=6,
    )
    trainer = DPOTrainer(model(), model(), optimizer("ember"), config)
    trainer.train([batch() for _ in range(FEW)], None)
    checks.check_state(trained(trainer), text.VOCAB_SIZE)


def reinforce() -> None:
    """Runs GRPO, whose rollouts need a mesh of one device here."""
    tokenizer = sorting.Tokenizer(100)
    base = make_model(len(tokenizer))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh)
    cluster = RLCluster(
        actor=nnx.clone(base),
        reference=base,
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh=roles,
            rollout_config=RolloutConfig(
                max_prompt_length=4, max_tokens_to_generate=3, kv_cache_size=7
            ),
            training_config=RLTrainingConfig(
                actor_optimizer=optimizer("ember"),
                max_steps=FEW,
                eval_every_n_steps=100,
            ),
        ),
    )
    config = GRPOConfig(num_generations=4, beta=0.0)
    learner = GRPOLearner(cluster, config, sorting.reward)
    prompts = sorting.prompts(np.random.default_rng(0), 4, 100, 3)
    learner.train({"prompts": np.array(prompts)} for _ in range(FEW))
    params, opt_state = nnx.as_pure(
        (
            nnx.state(cluster.actor_trainer.model, nnx.Param),
            cluster.actor_trainer.optimizer.opt_state,
        )
    )
    checks.check_state(checks.Trained([], params, opt_state), len(tokenizer))


CONFIG = """
model_config:
  model_name: qwen3
  model_source: huggingface
  intermediate_ckpt_dir: none
  mesh: {shape: "(1, 1)", axis_names: "('fsdp', 'tp')"}
tokenizer_config: {tokenizer_type: sentencepiece, tokenizer_path: none}
dataset_name: none
batch_size: 8
max_target_length: 33
num_train_epochs: 1
tfds_download: false
training_config: {max_steps: 12, eval_every_n_steps: 100}
optimizer_config:
  opt_type: ember
  schedule_type: warmup_cosine_decay_schedule
  init_value: 0.0
  peak_value: 0.01
  warmup_steps: 2
  decay_steps: 12
  embed_learning_rate: 0.3
"""


def from_command_line(workdir: Path) -> checks.Trained:
    """Runs tunix's command line, with the model and the data from here."""
    config = workdir / "config.yaml"
    config.write_text(CONFIG)
    argv = [plug_in.__file__, "tunix.cli.peft_main", str(config)]
    data = [peft_trainer.TrainingInput(x, np.ones_like(x)) for x in text.batches()]
    with (
        mock.patch.object(cli_model, "create_model", return_value=(model(), "")),
        mock.patch.object(cli_model, "create_tokenizer"),
        mock.patch.object(
            translation_dataset, "create_datasets", return_value=(data, None)
        ),
        mock.patch.object(
            PeftTrainer, "train", autospec=True, side_effect=PeftTrainer.train
        ) as train,
        mock.patch.object(sys, "argv", argv),
        contextlib.suppress(SystemExit),
    ):
        runpy.run_path(argv[0], run_name="__main__")
    return trained(train.call_args.args[0])


def run(workdir: Path) -> dict[str, Any]:
    # On one device, because tunix cannot resume a sharded model; see below.
    result = checks.compare(finetune, drop_after, workdir, text.VOCAB_SIZE)
    with jax.set_mesh(text.mesh(2, 2, names=("fsdp", "tp"))):
        sharded = finetune("ember", workdir / "sharded")
        checks.check_falls("Ember, sharded", sharded.losses)
        checks.check_state(sharded, text.VOCAB_SIZE)
        result["fails"] = restart_of_two_adamw(workdir / "two_adamw")
        factors = finetune("ember", workdir / "lora", lora())
        checks.check_only_adamw(factors.opt_state)
        frozen = finetune("ember", workdir / "frozen", frozen="embedder")
        checks.check_falls("a frozen embedding", frozen.losses)
        checks.check_tables(frozen.opt_state, "lm_head/w")
        prefer()
    reinforce()
    configured = from_command_line(workdir)
    checks.check_falls("the command line", configured.losses)
    checks.check_state(configured, text.VOCAB_SIZE)
    also = [
        "`opt_type: ember` from YAML",
        "DPO",
        "GRPO",
        "LoRA alone: AdamW",
        "frozen embedding",
    ]
    return result | {"also": also, "families": checks.check_families(build, MODELS)}


FAMILIES = ("gemma", "gemma3", "gemma4", "llama3", "qwen2", "qwen3")


def restart_of_two_adamw(workdir: Path) -> str:
    """Returns tunix's error when it resumes a sharded model without Ember, or ""."""
    finetune("two_adamw", workdir)
    drop_after(workdir)
    try:
        finetune("two_adamw", workdir)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"[:300]
    return ""


def names() -> Iterator[str]:
    """Yields the configurations of tunix's models, such as gemma3/gemma3_1b_it."""
    for module_name in FAMILIES:
        module = importlib.import_module(f"tunix.models.{module_name}.model")
        seen = []
        for name in dir(module.ModelConfig):
            if name.startswith(("gemma", "llama", "qwen")):
                config = getattr(module.ModelConfig, name)()
                if config not in seen:  # as instruct variants are
                    seen.append(config)
                    yield f"{module_name}/{name}"


MODELS = tuple(names())


def build(name: str) -> tuple[Any, int]:
    """Returns the shapes of a model with two layers."""
    module_name, _, config_name = name.partition("/")
    module = importlib.import_module(f"tunix.models.{module_name}.model")
    config = getattr(module.ModelConfig, config_name)()
    size = getattr(config, "vocab_size", None) or config.num_embed
    config = dataclasses.replace(config, num_layers=2)
    model_class = getattr(module, module_name.capitalize())
    made = nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0)))
    return nnx.as_pure(nnx.state(made, nnx.Param)), size


def drop_after(workdir: Path) -> None:
    for folder in workdir.rglob(str(STEPS)):
        shutil.rmtree(folder)
