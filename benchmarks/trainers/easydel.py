"""EasyDeL's Trainer on real text, 2-way FSDP and 2-way tensor parallelism."""

# pyright takes this file for the package.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import shutil
from pathlib import Path
from typing import Any

import easydel as ed
import easydel.modules
import jax.numpy as jnp
import numpy as np
from datasets import Dataset
from easydel.infra.factory import TaskType, registry
from flax import nnx

from benchmarks.trainers import checks, text
from benchmarks.trainers.checks import EMBED_RATE, HEAD_RATE, LEARNING_RATE, STEPS
from examples.trainers import easydel as plug_in

assert easydel.modules  # importing it registers the models
assert plug_in  # and this the optimizer

PACKAGE = "easydel"
LENGTH = text.TIME + 1
VOCAB_SIZE = 50_261  # of the models below: the size of nothing else
TINY = {
    "vocab_size": text.VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "sharding_axis_dims": (1, 2, 1, 2, 1),
}
OPTIONS = {
    "adamw": {"clip_grad": 1.0},
    "ember": {
        "extra_optimizer_kwargs": {
            "body_learning_rate": LEARNING_RATE,
            "embed_learning_rate": EMBED_RATE,
            "head_learning_rate": HEAD_RATE,
        }
    },
}
MODELS = """
    arctic cohere cohere2 dbrx deepseek_v2 deepseek_v3 exaone exaone4 falcon falcon_h1
    falcon_mamba gemma gemma2 gemma3_text gemma4_text glm glm4 glm4_moe glm4_moe_lite
    glm_moe_dsa gpt2 gpt_neox gpt_oss gptj grok-1 internlm2 kimi_linear llama
    llama4_text mamba mamba2 minimax mistral mixtral mpt olmo olmo2 olmo3 openelm opt
    phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_moe qwen3_next roberta rwkv
    seed_oss smollm3 stablelm xerxes
""".split()

LAYERS = {"num_hidden_layers": 2}
SETTINGS = {
    # The number of layers of these is not free.
    **{name: {} for name in "dbrx gpt2 gptj mpt".split()},
    # Its per-layer embeddings have a size of their own.
    "gemma4_text": {**LAYERS, "vocab_size_per_layer_input": VOCAB_SIZE},
    "minimax": {**LAYERS, "head_dim": 128},
    # As in its weights; otherwise it has a second head, which nothing reads.
    "openelm": {"share_input_output_layers": True},
}


class Recorder(ed.Trainer):
    """Keeps the loss of each step."""

    losses: list[float]

    def on_step_end(self, state: Any, metrics: Any, step: int) -> tuple[Any, Any]:
        self.losses.append(float(metrics.loss))
        return state, metrics


def model() -> Any:
    return ed.LlamaForCausalLM(
        config=ed.LlamaConfig(**TINY),
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )


def data() -> Dataset:
    ids = text.batches().reshape(-1, LENGTH)
    columns = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    return Dataset.from_dict({name: x.tolist() for name, x in columns.items()})


def train(
    name: str, workdir: Path, made: Any = None, frozen: str | None = None
) -> checks.Trained:
    options = OPTIONS[name]
    if frozen:
        extra = options["extra_optimizer_kwargs"] | {"frozen": frozen}
        options = options | {"extra_optimizer_kwargs": extra}
    arguments = ed.TrainingArguments(
        model_name="run",
        save_directory=str(workdir),
        optimizer=name,
        learning_rate=LEARNING_RATE,
        scheduler="cosine",
        warmup_steps=2,
        weight_decay=0.0,
        num_train_epochs=1,
        max_training_steps=STEPS,
        total_batch_size=text.BATCH,
        max_length=LENGTH,
        shuffle_train_dataset=False,
        save_steps=checks.SAVED,
        do_last_save=False,
        use_wandb=False,
        progress_bar_type="json",
        **options,
    )
    trainer = Recorder(arguments=arguments, model=made or model(), dataset_train=data())
    trainer.losses = []
    state = trainer.train().state
    return checks.Trained(trainer.losses, state.graphstate, state.opt_state)


def run(workdir: Path) -> dict[str, Any]:
    result = checks.compare(train, drop_after, workdir, text.VOCAB_SIZE)
    factors = train("ember", workdir / "lora", lora())
    checks.check_only_adamw(factors.opt_state)
    frozen = train("ember", workdir / "frozen", frozen="embed_tokens")
    checks.check_falls("a frozen embedding", frozen.losses)
    checks.check_tables(frozen.opt_state, "lm_head/kernel")
    also = ["LoRA alone: AdamW", "frozen embedding"]
    return result | {"also": also, "families": checks.check_families(build, MODELS)}


def lora() -> Any:
    pattern = ".*(q_proj|gate_proj).*"
    return model().apply_lora_to_layers(2, pattern, rngs=nnx.Rngs(1))


def build(name: str) -> tuple[Any, int]:
    """Returns the shapes of a model."""
    registered = registry.task_registry[TaskType.CAUSAL_LM][name]
    settings = SETTINGS.get(name, LAYERS)
    made = registered.module.lazy_init(
        config=registered.config(vocab_size=VOCAB_SIZE, **settings),
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    return made.split_module()[1], VOCAB_SIZE


def drop_after(workdir: Path) -> None:
    for folder in list(workdir.rglob("run-*")):
        if int(folder.name.removeprefix("run-")) > checks.SAVED:
            shutil.rmtree(folder)
