"""big_vision's training of PaliGemma on real text, FSDP over four devices.

It is also the configuration that the loop reads: `get_config`.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportAttributeAccessIssue=false

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
import optax
import tensorflow as tf
from absl import flags
from big_vision import optax as bv_optax
from big_vision import utils
from big_vision.datasets import core
from big_vision.models.ppp import gemma
from jax.experimental import multihost_utils

from benchmarks.trainers import checks, environment, text
from benchmarks.trainers.checks import HEAD_RATE, LEARNING_RATE, SAVED, STEPS
from examples.trainers import big_vision as plug_in  # noqa: F401

# big_vision has no versions, so the commit identifies it.
PINNED = tomllib.loads(environment.TABLE.read_text())["big_vision"]
VERSION = PINNED["checkout"]["commit"][:12]
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
    keep = {"type": "ember_keep", "pred": "logits"}
    c.evals = {"keep": keep | {"log_steps": STEPS, "skip_first": True}}

    c.model_name = "proj.paligemma.paligemma"
    c.model = {
        "img": {"variant": "mu/8", "pool_type": "none", "scan": True},
        "llm": {"variant": "tiny", "vocab_size": text.VOCAB_SIZE},
    }
    c.mesh = [("data", -1)]
    c.sharding_rules = [("act_batch", ("data",))]
    c.sharding_strategy = [(".*", 'fsdp(axis="data", min_size_to_shard_mb=0)')]

    c.lr = LEARNING_RATE
    c.grad_clip_norm = 1.0
    c.wd = 1e-4
    c.schedule = [(".*", schedule)]
    if run == "adamw":
        c.optax_name = "scale_by_adam"
        return c
    c.optax_name = "big_vision.scale_by_adam_and_ember"
    c.lr_mults = [(TABLE, HEAD_RATE / LEARNING_RATE)]
    c.sharding_strategy = [("opt/.*/table/.*", "replicate"), *c.sharding_strategy]
    if run == "frozen":
        c.schedule = [(TABLE, None), *c.schedule]
    return c


class DataSource(core.DataSource):
    """Windows of text, each with an image of noise.

    big_vision does not save its position in the data. Therefore both the uninterrupted
    run and the resumed one read the same SAVED batches twice.
    """

    def get_tfdata(self, ordered: bool, **_: Any) -> tf.data.Dataset:
        with jax.transfer_guard("allow"):  # which big_vision's loop disallows
            tokens = text.batches()[:SAVED].reshape(-1, text.TIME + 1)
        size = (len(tokens), SIDE, SIDE, 3)
        images = np.random.default_rng(0).integers(256, size=size, dtype=np.uint8)
        ones = np.ones_like(tokens)
        examples: Any = {"image": images, "text": tokens}
        examples |= {"mask_ar": ones, "mask_loss": ones}
        return tf.data.Dataset.from_tensor_slices(examples)

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
    """Imports big_vision's loop, and registers the classes of this file with it."""
    here = sys.modules[__name__]
    sys.modules["big_vision.datasets.ember_windows"] = here
    sys.modules["big_vision.evaluators.ember_keep"] = here
    sized = gemma.get_config  # its smallest has two billion parameters

    def get_config(variant: str) -> ml_collections.ConfigDict:
        if variant != "tiny":
            return sized(variant)
        config = sized("gemma2_2b")
        config.update(
            width=64, depth=2, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16
        )
        return config

    gemma.get_config = get_config
    # Its barrier at the end uses a sharding that newer versions of jax removed.
    utils.sync = functools.partial(multihost_utils.sync_global_devices, "end")
    found = importlib.import_module("big_vision.trainers.proj.paligemma.train")
    jax.config.update("jax_transfer_guard", "allow")  # outside the loop
    return found


def train(name: str, workdir: Path) -> checks.Trained:
    main = loop().main
    utils.chrono = utils.Chrono()  # otherwise it continues the previous run's
    flags.FLAGS(["train", f"--config={__file__}:{name}", f"--workdir={workdir}"])
    with jax.transfer_guard("disallow"):
        main([])
    # The loop writes its last step twice, and `step` too late to be right.
    lines = (workdir / "big_vision_metrics.txt").read_text().splitlines()
    losses = {x["progress"]: x["training_loss"] for x in map(json.loads, lines)}
    state = Evaluator.state
    return checks.Trained(list(losses.values()), state["params"], state["opt"])


def drop_after(workdir: Path) -> None:
    (workdir / "big_vision_metrics.txt").unlink()
    shutil.rmtree(workdir / f"checkpoint.bv-{STEPS:09d}")
    (workdir / "checkpoint.bv-LAST").write_text(f"{SAVED:09d}")


def run(workdir: Path) -> dict[str, Any]:
    result = checks.compare(train, drop_after, workdir, text.VOCAB_SIZE)
    frozen = train("frozen", workdir / "frozen")
    checks.check_falls("a frozen table", frozen.losses)
    checks.check_only_adamw(frozen.opt_state)
    check_decay()
    return result | {
        "also": ["frozen table"],
        "families": checks.check_families(build, MODELS),
    }


def check_decay() -> None:
    """Raises unless `wd` decays a kernel of the image tower but not the table."""
    shapes = {"img/head/kernel": (8, 4), TABLE: (32, 4), "llm/layers/linear": (4, 8)}
    params = utils.recover_tree(shapes, map(jnp.ones, shapes.values()))
    tx, _ = bv_optax.make(get_config("ember"), params, sched_kw={"total_steps": STEPS})
    state, updates = tx.init(params), params
    for _ in range(2):  # the learning rate of the first step is 0
        updates, state = tx.update(optax.tree.zeros_like(params), state, params)
    named = dict(utils.tree_flatten_with_names(updates)[0])
    assert np.all(named["img/head/kernel"] < 0)
    assert np.all(named[TABLE] == 0)


def build(name: str) -> tuple[Any, int]:
    """Returns the shapes of one of big_vision's models, in its own size."""
    image, tokens = np.zeros((1, 256, 256, 3)), np.zeros((1, 8), np.int32)
    inputs: tuple[Any, ...] = (image, tokens)
    vocab_size = 32_000
    if name.startswith("gemma"):
        vocab_size = 256_000 + 1024 + 128
        options = {
            "img": {"variant": "So400m/14", "pool_type": "none", "scan": True},
            "llm": {"variant": name, "vocab_size": vocab_size},
        }
        path, inputs = "paligemma.paligemma", (image, tokens, tokens)
    elif name.startswith("jetformer"):
        path = "jetformer.jetformer"
        options = {"width": 1024, "depth": 24, "mlp_dim": 4096, "num_heads": 16}
        options |= {"num_kv_heads": 1, "head_dim": 64, "vocab_size": vocab_size}
        options |= {"bos_id": 1, "boi_id": 2, "nolabel_id": 3}
        options["untie_output_vocab"] = "untied" in name
        inputs = (tokens, np.zeros((1, 16, 32)), np.ones(1, bool))
    else:
        path, options = {
            "two_towers": (
                "image_text.two_towers",
                {"image": {"variant": "B/16"}, "text": {"variant": "B"}},
            ),
            "cappa": ("cappa.cappa", {}),
            "uvim": ("uvim.vtt", {"patches": {"size": (16, 16)}}),
        }[name]
    module = importlib.import_module(f"big_vision.models.proj.{path}")
    model = module.Model(**ml_collections.FrozenConfigDict(options))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return shapes["params"], vocab_size
