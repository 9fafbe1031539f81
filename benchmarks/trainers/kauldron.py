"""Kauldron's Trainer with a tiny Gemma 3 on real text, FSDP over four devices."""

# pyright takes this file for the package.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gemma import gm
from kauldron import kd
from kauldron.train import metric_writer

from benchmarks.trainers import checks, text
from benchmarks.trainers.checks import STEPS
from examples.trainers import kauldron as plug_in

PACKAGE = "kauldron"
TINY = gm.nn.config.TransformerConfig(
    num_embed=text.VOCAB_SIZE,
    embed_dim=64,
    hidden_dim=128,
    num_heads=4,
    head_dim=16,
    num_kv_heads=4,
    final_logit_softcap=None,
    use_post_attn_norm=True,
    use_post_ffw_norm=True,
    attention_types=(
        gm.nn.AttentionType.LOCAL_SLIDING,
        gm.nn.AttentionType.GLOBAL,
    ),
    sliding_window_size=8,
)
MODELS = """
    Gemma2_2B Gemma2_9B Gemma2_27B Gemma3_270M Gemma3_1B Gemma3_4B Gemma3_12B Gemma3_27B
    Gemma3n_E2B Gemma3n_E4B Gemma4_E2B Gemma4_E4B Gemma4_31B Gemma4_26B_A4B
""".split()


class Windows:
    """Windows of text, one after the other."""

    def __len__(self) -> int:
        return STEPS * text.BATCH

    def __getitem__(self, i: int) -> dict[str, Any]:
        tokens = text.batches().reshape(-1, text.TIME + 1)[i]
        return {"input": tokens[:-1], "target": tokens[1:, None]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(kd.data.py.DataSourceBase):
    """Wraps `Windows` for Kauldron."""

    @functools.cached_property
    def data_source(self) -> Windows:
        return Windows()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorder(metric_writer.NoopWriter):
    """Keeps the loss of each step."""

    losses: list[float] = dataclasses.field(default_factory=list)

    def write_step_metrics(self, *, aux: Any, **_: Any) -> None:
        found = aux.compute(flatten=False).loss_values
        self.losses.append(float(found["loss"]))


def optimizer(name: str) -> optax.GradientTransformation:
    if name == "ember":
        return plug_in.make_optimizer(*checks.SCHEDULES)
    adamw = optax.adamw(checks.SCHEDULES[0])
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def model() -> Any:
    return gm.nn.Transformer(config=TINY, tokens="batch.input", dtype=jnp.float32)


def train(
    name: str, workdir: Path, made: Any = None, mask: Any = None
) -> checks.Trained:
    tx, recorder = optimizer(name), Recorder()
    trainer = kd.train.Trainer(
        seed=0,
        workdir=workdir,
        train_ds=Data(
            batch_size=text.BATCH,
            shuffle=False,
            seed=0,
            num_workers=0,
            num_epochs=None,
        ),
        model=made or model(),
        num_train_steps=STEPS,
        stop_after_steps=STEPS,  # otherwise it takes one step more
        log_metrics_every=1,
        train_losses={
            "loss": kd.losses.SoftmaxCrossEntropyWithIntLabels(
                logits="preds.logits", labels="batch.target"
            )
        },
        optimizer=kd.optim.partial_updates(tx, mask=mask) if mask else tx,
        sharding=kd.sharding.ShardingStrategy(
            params=kd.sharding.FSDPSharding(min_size_to_shard_mb=0),
            opt_state=plug_in.replicate,
        ),
        checkpointer=kd.ckpts.Checkpointer(save_interval_steps=checks.SAVED),
        writer=recorder,
        profiler=kd.inspect.Profiler(first_profile=None),
    )
    state, _ = trainer.train()
    return checks.Trained(recorder.losses, state.params, state.opt_state)


def run(workdir: Path) -> dict[str, Any]:
    result = checks.compare(train, drop_after, workdir, text.VOCAB_SIZE)
    factors = gm.nn.LoRA(rank=2, model=model(), dtype=jnp.float32)
    only = train("ember", workdir / "lora", factors, kd.optim.select("lora"))
    checks.check_only_adamw(only.opt_state)
    frozen = train("ember", workdir / "frozen", mask=kd.optim.exclude("embedder"))
    checks.check_falls("a frozen table", frozen.losses)
    checks.check_only_adamw(frozen.opt_state)
    also = ["LoRA by `partial_updates`: AdamW", "frozen table"]
    return result | {"also": also, "families": checks.check_families(build, MODELS)}


def build(name: str) -> tuple[Any, int]:
    """Returns the shapes of one of Gemma's models, in its own size."""
    made = getattr(gm.nn, name)(tokens="batch.input")
    tokens = jax.ShapeDtypeStruct((1, 8), np.int32)
    shapes = jax.eval_shape(made.init, jax.random.key(0), tokens)
    return shapes["params"], made.config.num_embed


def drop_after(workdir: Path) -> None:
    for folder in workdir.rglob(f"ckpt_{STEPS}"):
        shutil.rmtree(folder)
