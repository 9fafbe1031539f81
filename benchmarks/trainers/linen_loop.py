"""Your own loop with Flax linen, on a mesh of 2 x 2 devices."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding

from benchmarks.trainers import checks, text
from examples.trainers import linen_loop

PACKAGE = "flax"
WIDTH = 64


class Model(nn.Module):
    """Two token tables with an MLP between them, sharded over both mesh axes."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        rows = nn.with_partitioning(init, ("model", "data"))
        columns = nn.with_partitioning(init, ("data", "model"))
        embed = nn.Embed(text.VOCAB_SIZE, WIDTH, embedding_init=rows, name="embed")
        x = embed(tokens)
        x = x + nn.Dense(WIDTH, kernel_init=columns, name="mlp")(nn.gelu(x))
        return nn.Dense(
            text.VOCAB_SIZE, use_bias=False, kernel_init=columns, name="lm_head"
        )(x)


def optimizer(name: str, frozen: str | None = None) -> optax.GradientTransformation:
    if name == "ember":
        tx = linen_loop.make_optimizer(*checks.SCHEDULES, text.VOCAB_SIZE)
        return checks.freeze(tx, frozen) if frozen else tx
    adamw = optax.adamw(checks.SCHEDULES[0], b2=0.95, weight_decay=0.1)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def create(name: str, frozen: str | None) -> TrainState:
    """Creates the state sharded, without a replicated copy first."""
    tokens = text.batches()[0, :, :-1]

    def init() -> TrainState:
        model = Model()
        params = model.init(jax.random.key(0), tokens)["params"]
        tx = optimizer(name, frozen)
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    mesh = jax.sharding.get_mesh()
    specs = nn.get_partition_spec(jax.eval_shape(init))
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(init, out_shardings=shardings)()


def train(name: str, workdir: Path, frozen: str | None = None) -> checks.Trained:
    with text.checkpoints(workdir) as manager:
        state, losses = linen_loop.train(create(name, frozen), text.batches(), manager)
    return checks.Trained(losses, state.params, state.opt_state)


def run(workdir: Path) -> dict[str, Any]:
    with jax.set_mesh(text.mesh(2, 2)):
        result = checks.compare(train, drop_after, workdir, text.VOCAB_SIZE)
        start = create("ember", "embed").params
        frozen = train("ember", workdir / "frozen", frozen="embed")
        only_body = train("ember", workdir / "body", frozen="embed|lm_head")
    embedding = nn.unbox(frozen.params)["embed"]["embedding"]
    assert np.array_equal(nn.unbox(start)["embed"]["embedding"], embedding)
    checks.check_tables(frozen.opt_state, "lm_head/kernel")
    checks.check_falls("a frozen embedding", frozen.losses)
    checks.check_only_adamw(only_body.opt_state)
    return result | {"also": ["frozen embedding", "frozen tables: AdamW alone"]}


def drop_after(workdir: Path) -> None:
    shutil.rmtree(workdir / str(checks.STEPS))
