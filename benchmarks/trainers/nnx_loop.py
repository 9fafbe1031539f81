"""Your own loop with Flax NNX, on a mesh of 2 x 2 devices."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from benchmarks.trainers import checks, text
from examples.trainers import nnx_loop

PACKAGE = "flax"
WIDTH = 64


class Model(nnx.Module):
    """Two token tables with an MLP between them, sharded over both mesh axes."""

    def __init__(self, rngs: nnx.Rngs, lora_rank: int = 0):
        init = nnx.initializers.normal(0.02)
        rows = nnx.with_partitioning(init, ("model", "data"))
        columns = nnx.with_partitioning(init, ("data", "model"))
        make = partial(nnx.Linear, kernel_init=columns, use_bias=False, rngs=rngs)
        self.embed = nnx.Embed(text.VOCAB_SIZE, WIDTH, embedding_init=rows, rngs=rngs)
        self.mlp = make(WIDTH, WIDTH)
        self.lm_head = make(WIDTH, text.VOCAB_SIZE)
        self.lora = (
            nnx.LoRA(WIDTH, lora_rank, text.VOCAB_SIZE, rngs=rngs)
            if lora_rank
            else None
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        x = x + self.mlp(nnx.gelu(x))
        return self.lm_head(x) + (self.lora(x) if self.lora else 0)


def optimizer(name: str) -> optax.GradientTransformation:
    if name == "ember":
        return nnx_loop.make_optimizer(*checks.SCHEDULES, text.VOCAB_SIZE)
    adamw = optax.adamw(checks.SCHEDULES[0], b2=0.95, weight_decay=0.1)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def train(name: str, workdir: Path, wrt: Any = nnx.Param) -> checks.Trained:
    model = Model(nnx.Rngs(0))
    with text.checkpoints(workdir) as manager:
        state, losses = nnx_loop.train(
            model, optimizer(name), text.batches(), manager, wrt
        )
    params, opt_state = nnx.as_pure((nnx.state(model), state.opt_state))
    return checks.Trained(losses, params, opt_state)


def run(workdir: Path) -> dict[str, Any]:
    with jax.set_mesh(text.mesh(2, 2)):
        result = checks.compare(train, drop_after, workdir, text.VOCAB_SIZE)
        all_but_embedding = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("embed")))
        frozen = train("ember", workdir / "frozen", wrt=all_but_embedding)
        start = nnx.as_pure(nnx.state(Model(nnx.Rngs(0))))
        check_lora()
    checks.check_falls("a frozen embedding", frozen.losses)
    checks.check_tables(frozen.opt_state, "lm_head/kernel")
    moved = np.any(frozen.params["embed"]["embedding"] != start["embed"]["embedding"])
    assert not moved, "The frozen embedding moves."
    return result | {"also": ["frozen embedding", "LoRA alone: an error"]}


def check_lora() -> None:
    """Raises unless Ember says that factors of LoRA are not tables."""
    model = Model(nnx.Rngs(0), lora_rank=2)
    with pytest.raises(ValueError, match="LoRA"):
        nnx.Optimizer(model, optimizer("ember"), wrt=nnx.LoRAParam)


def drop_after(workdir: Path) -> None:
    shutil.rmtree(workdir / str(checks.STEPS))
