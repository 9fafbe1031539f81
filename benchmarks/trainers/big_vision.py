"""big_vision's training of PaliGemma on real text, FSDP over four devices.

It is also the configuration that the loop reads: `get_config`.
"""

# pyright: reportMissingImports=false

import functools
import importlib
import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tensorflow as tf
from absl import flags
from big_vision import optax as bv_optax
from big_vision import utils
from big_vision.datasets import core
from big_vision.models.ppp import gemma

from benchmarks.trainers import checks, environment, text
from benchmarks.trainers.checks import HEAD_RATE, LEARNING_RATE, SAVED, STEPS
from examples.trainers import big_vision as plug_in  # noqa: F401

TABLE = "llm/embedder/input_embedding"
SIDE = 16
MODELS = """
    gemma_2b gemma_7b gemma2_2b gemma2_9b gemma2_27b two_towers cappa uvim jetformer
    jetformer_untied
""".split()


def get_config(run: str) -> ml_collections.ConfigDict:
    """Returns the configuration of a run: `adamw`, `ember` or `frozen`."""
    schedule = {"decay_type": "cosine", "warmup_steps": 2}
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.total_steps = STEPS
    c.log_training_steps = 1
    c.ckpt_steps = c.keep_ckpt_steps = SAVED
    c.pp_modules = ["ops_general"]
    c.input = {
        "data": {"name": "bv:ember_windows"},
        "batch_size": text.BATCH,
        "pp": 'value_range(-1, 1)|keep("image", "text", "mask_ar", "mask_loss")',
    }
    c.evals = {
        "keep": {"type": "ember_keep", "pred": "logits", "log_steps": STEPS},
    }
    c.evals["keep"].skip_first = True

    c.model_name = "proj.paligemma.paligemma"
    c.model = {
        "img": {"variant": "mu/8", "pool_type": "none", "scan": True},
        "llm": {"variant": "tiny", "vocab_size": text.VOCAB_SIZE},
    }
    c.mesh = [("data", -1)]
    c.sharding_rules = [("act_batch", ("data",))]
    c.sharding_strategy = [(".*", 'fsdp(axis="data", min_size_to_shard_mb=0)')]

    c.lr = LEARNING_RATE
    c.wd = 1e-4
    c.schedule = [(".*", schedule)]
    if run == "adamw":
        c.optax_name = "scale_by_adam"
        c.grad_clip_norm = 1.0
        return c
    c.optax_name = "big_vision.scale_by_adam_and_ember"
    c.optax = {"max_norm": 1.0}
    c.lr_mults = [(TABLE, HEAD_RATE / LEARNING_RATE)]
    c.sharding_strategy = [("opt/.*/table/.*", "replicate"), *c.sharding_strategy]
    if run == "frozen":
        c.schedule = [(TABLE, None), *c.schedule]
    return c


class DataSource(core.DataSource):
    """Windows of text, each beside an image of noise.

    big_vision does not save its place in the data. Twice the same SAVED batches are
    what both the straight run and the one that goes on read.
    """

    def get_tfdata(self, ordered: bool, **_: Any) -> tf.data.Dataset:
        tokens = text.batches()[:SAVED].reshape(-1, text.TIME + 1)
        size = (len(tokens), SIDE, SIDE, 3)
        images = np.random.default_rng(0).integers(256, size=size, dtype=np.uint8)
        ones = np.ones_like(tokens)
        return tf.data.Dataset.from_tensor_slices(
            {"image": images, "text": tokens, "mask_ar": ones, "mask_loss": ones}
        )

    @property
    def total_examples(self) -> int:
        return SAVED * text.BATCH


class Evaluator:
    """Keeps the state after the last step: big_vision's hook to see it."""

    state: dict[str, Any]

    def __init__(self, predict: Any, **_: Any):
        del predict

    def run(self, train_state: dict[str, Any]) -> Iterator[tuple[str, float]]:
        Evaluator.state = train_state
        return iter(())


API = "jit"  # of the evaluator


@functools.cache
def loop() -> Any:
    """Returns the module of big_vision's loop, which finds what is defined here."""
    here = sys.modules[__name__]
    sys.modules["big_vision.datasets.ember_windows"] = here
    sys.modules["big_vision.evaluators.ember_keep"] = here
    sized = gemma.get_config

    def get_config(variant: str) -> ml_collections.ConfigDict:
        if variant != "tiny":
            return sized(variant)
        config = sized("gemma2_2b")
        config.update(
            width=64, depth=2, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16
        )
        return config

    gemma.get_config = get_config
    # The last line of the loop is a barrier between processes, made of a sharding that
    # jax has no more. There is one process.
    utils.sync = lambda: None
    found = importlib.import_module("big_vision.trainers.proj.paligemma.train")
    jax.config.update("jax_transfer_guard", "allow")  # outside the loop
    return found


def train(name: str, workdir: Path) -> checks.Trained:
    main = loop().main
    flags.FLAGS(["train", f"--config={__file__}:{name}", f"--workdir={workdir}"])
    with jax.transfer_guard("disallow"):
        main([])
    lines = (workdir / "big_vision_metrics.txt").read_text().splitlines()
    losses = [json.loads(line)["training_loss"] for line in lines]
    return checks.Trained(losses, Evaluator.state["params"], Evaluator.state["opt"])


def drop_after(workdir: Path) -> None:
    (workdir / "big_vision_metrics.txt").unlink()
    shutil.rmtree(workdir / f"checkpoint.bv-{STEPS:09d}")
    (workdir / "checkpoint.bv-LAST").write_text(f"{SAVED:09d}")


def run(workdir: Path) -> dict[str, Any]:
    result = checks.compare(train, drop_after, workdir, text.VOCAB_SIZE)
    return result
