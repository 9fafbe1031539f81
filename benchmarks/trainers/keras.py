"""KerasHub's Gemma with `model.fit`, on 2 x 2 devices of `ModelParallel`."""

# pyright takes this file for the package.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import inspect
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import keras
import keras_hub

from benchmarks.trainers import checks, text
from benchmarks.trainers.checks import LEARNING_RATE, SAVED, STEPS
from examples.trainers import keras as plug_in

PACKAGE = "keras-hub"
TINY = {
    "vocabulary_size": text.VOCAB_SIZE,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 64,
    "intermediate_dim": 128,
    "head_dim": 16,
}


@keras.saving.register_keras_serializable()
def make_ember() -> Any:
    return plug_in.make_optimizer(*checks.SCHEDULES)


@keras.saving.register_keras_serializable()
def make_accumulating() -> Any:
    return optax.MultiSteps(make_ember(), 2).gradient_transformation()


def optimizer(name: str) -> keras.optimizers.Optimizer:
    if name == "ember":
        return plug_in.OptaxOptimizer(make_ember)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, STEPS - 2, warmup_target=LEARNING_RATE, warmup_steps=2
    )
    return keras.optimizers.AdamW(rate, global_clipnorm=1.0)


def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras_hub.models.GemmaCausalLM(keras_hub.models.GemmaBackbone(**TINY))


def compile_and_build(made: keras.Model, used: keras.optimizers.Optimizer) -> None:
    made.compile(
        optimizer=used,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    made.optimizer.build(made.trainable_variables)


def fit(made: keras.Model, workdir: Path, batch: int = text.BATCH) -> checks.Trained:
    """Trains after the last checkpoint in the folder."""
    last = max((int(path.stem) for path in workdir.glob("*.keras")), default=0)
    if last:
        made.load_weights(workdir / f"{last}.keras")
    tokens = text.batches().reshape(-1, text.TIME + 1)
    rest = tokens[last * batch :]
    save = keras.callbacks.ModelCheckpoint(workdir / "{epoch}.keras", save_freq=SAVED)
    history = made.fit(
        {"token_ids": rest[:, :-1], "padding_mask": np.ones_like(rest[:, 1:])},
        rest[:, 1:],
        batch_size=batch,
        epochs=len(tokens) // batch,
        steps_per_epoch=1,  # Keras's history has one loss for each epoch
        initial_epoch=last,
        shuffle=False,
        verbose=0,
        callbacks=[save],
    )
    used = made.optimizer
    is_ember = isinstance(used, plug_in.OptaxOptimizer)
    return checks.Trained(
        history.history["loss"],
        {v.path: v.value for v in made.trainable_variables},
        used.opt_state() if is_ember else [v.value for v in used.variables],
    )


def train(name: str, workdir: Path) -> checks.Trained:
    made = model()
    compile_and_build(made, optimizer(name))
    return fit(made, workdir)


def run(workdir: Path) -> dict[str, Any]:
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"))
    layout_map = keras_hub.models.GemmaBackbone.get_layout_map(mesh)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch")
    )
    result = checks.compare(train, drop_after, workdir, text.VOCAB_SIZE)
    check_accumulation(result["losses"]["ember"], workdir / "accumulation")
    check_load_model(workdir / "whole.keras")
    check_mixed_precision(workdir / "mixed")

    factors = model()
    factors.backbone.enable_lora(2)
    compile_and_build(factors, optimizer("ember"))
    checks.check_only_adamw(fit(factors, workdir / "lora").opt_state)

    frozen = model()
    frozen.backbone.token_embedding.trainable = False
    compile_and_build(frozen, optimizer("ember"))
    without_table = fit(frozen, workdir / "frozen")
    checks.check_falls("a frozen table", without_table.losses)
    checks.check_only_adamw(without_table.opt_state)
    keras.distribution.set_distribution(None)
    also = [
        "gradient accumulation",
        "`load_model`",
        "`mixed_float16`",
        "LoRA alone: AdamW",
        "frozen table",
    ]
    return result | {"also": also, "families": checks.check_families(build, MODELS)}


def check_accumulation(losses: list[float], workdir: Path) -> None:
    """Raises unless two halves of each batch train like the whole batch."""
    made = model()
    compile_and_build(made, plug_in.OptaxOptimizer(make_accumulating))
    halves = fit(made, workdir, batch=text.BATCH // 2).losses
    np.testing.assert_allclose(np.reshape(halves, (-1, 2)).mean(1), losses, rtol=1e-3)


def check_load_model(path: Path) -> None:
    """Raises unless Keras restores a plain model with its state."""
    layers = keras.layers
    made = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(text.VOCAB_SIZE, 64, name="token_embedding"),
            layers.Dense(64, activation="gelu"),
            layers.Dense(text.VOCAB_SIZE, name="lm_head"),
        ]
    )
    compile_and_build(made, optimizer("ember"))
    tokens = text.batches()[0]
    made.fit(tokens[:, :-1], tokens[:, 1:], verbose=0)
    made.save(path)
    loaded = keras.saving.load_model(path)
    checks.check_equal(
        checks.host([v.value for v in made.variables + made.optimizer.variables]),
        checks.host([v.value for v in loaded.variables + loaded.optimizer.variables]),
    )


def check_mixed_precision(workdir: Path) -> None:
    """Raises unless Ember trains inside Keras's `LossScaleOptimizer`."""
    keras.config.set_dtype_policy("mixed_float16")
    made = model()
    compile_and_build(made, optimizer("ember"))
    assert isinstance(made.optimizer, keras.optimizers.LossScaleOptimizer)
    checks.check_falls("mixed precision", fit(made, workdir).losses)
    keras.config.set_dtype_policy("float32")


VOCAB_SIZE = 4099  # of the models below: the size of nothing else
NUMBERS = TINY | {
    "vocabulary_size": VOCAB_SIZE,
    "vocab_size": VOCAB_SIZE,
    "num_heads": 4,
    "num_attention_heads": 4,
    "head_size": 16,
    "embedding_dim": 32,
    "image_size": 16,
    "num_experts": 4,
    "moe_intermediate_dim": 32,
    "shared_expert_intermediate_dim": 32,
    "max_sequence_length": 32,
}
MODELS = """
    BloomCausalLM FalconCausalLM Gemma3CausalLM GemmaCausalLM GPT2CausalLM
    GPTNeoXCausalLM GptOssCausalLM Llama3CausalLM LlamaCausalLM MistralCausalLM
    MixtralCausalLM OPTCausalLM Phi3CausalLM Qwen3CausalLM Qwen3MoeCausalLM
    QwenCausalLM QwenMoeCausalLM AlbertMaskedLM BertMaskedLM
    DebertaV3MaskedLM DistilBertMaskedLM ElectraBackbone FNetMaskedLM RobertaMaskedLM
    RoformerV2MaskedLM XLMRobertaMaskedLM BartSeq2SeqLM T5Backbone XLNetBackbone
""".split()


def build(name: str) -> tuple[Any, int]:
    """Returns the shapes of a tiny model."""
    task = getattr(keras_hub.models, name)
    backbone = getattr(task, "backbone_cls", task)
    accepted = inspect.signature(backbone).parameters
    made = backbone(**{k: v for k, v in NUMBERS.items() if k in accepted})
    if task is not backbone:
        made = task(backbone=made, preprocessor=None)
    return {
        v.path: jax.ShapeDtypeStruct(v.shape, v.dtype) for v in made.trainable_variables
    }, VOCAB_SIZE


def drop_after(workdir: Path) -> None:
    (workdir / f"{STEPS}.keras").unlink()
