"""One run of the study: from its settings to its losses."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import ember_optax
from benchmarks.study import loss as fast
from benchmarks.study.arms import ARMS
from benchmarks.study.settings import Settings
from configs import pretrain_124m, pretrain_small
from examples.lm import Config, data, program
from examples.lm.model import Decoder
from examples.lm.optimizer import body_optimizer, schedule

VALIDATION_TOKENS = 32_768
CONFIGS = {"pretrain_small": pretrain_small, "pretrain_124m": pretrain_124m}


def make_config(run: Settings) -> Config:
    """Returns the config of a pretraining run, changed by the settings of a run."""
    config: Config = CONFIGS[run.config].get_config()
    config.update(
        steps=run.steps, batch_size=run.batch, sequence_length=run.window, seed=run.seed
    )
    config.model.update(
        width=run.width,
        mlp_width=config.model.mlp_width * run.width // config.model.width,
        layers=run.layers,
        tied=run.tied,
        vocab_multiple=1,  # the loss knows no padding
    )
    config.body.update(optimizer=run.body, learning_rate=run.body_lr)
    return config


def table_optimizer(
    config: Config, arm: str, lr: Any, b2: float | None
) -> optax.GradientTransformation:
    """Returns an arm with its learning rate, on the schedule of all others."""
    return optax.chain(
        ARMS[arm].scale_by(b2),
        optax.scale_by_schedule(schedule(config, 1.0)),
        optax.scale(-lr),
    )


def make_optimizer(
    run: Settings, config: Config, lr: Any, other_lr: Any
) -> optax.GradientTransformation:
    """Returns the optimizer of a whole model; learning rates may be traced."""
    arm = table_optimizer(config, run.arm, lr, run.b2)
    optimizers: dict[Hashable, optax.GradientTransformation] = {
        "embed": arm,
        "lm_head": arm,
        "body": body_optimizer(config),
    }
    if run.tables != "both":
        other = "lm_head" if run.tables == "embed" else "embed"
        optimizers[other] = table_optimizer(config, "adam", other_lr, 0.999)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.multi_transform(optimizers, _labels),
    )


def _labels(params: Any) -> Any:
    """Labels each table by its name and everything else as the body."""
    return jax.tree_util.tree_map_with_path(
        lambda path, label: path[0].key if label == "table" else label,
        ember_optax.label_token_tables(params),
    )


class Functions(NamedTuple):
    """What XLA compiles."""

    init: Callable[[int], program.State]
    step: Callable[[program.State, Any, float, float], tuple[program.State, jax.Array]]
    loss: Callable[[Any, Any], jax.Array]


@functools.lru_cache(maxsize=2)  # each takes tens of megabytes
def make_functions(run: Settings, vocab_size: int) -> Functions:
    """Returns functions that serve all learning rates of tables, and all seeds."""
    config = make_config(run)
    make_model = functools.partial(Decoder, vocab_size, **config.model)
    graph = nnx.graphdef(nnx.eval_shape(lambda: make_model(rngs=nnx.Rngs(0))))

    def init(seed: int) -> program.State:
        model = make_model(rngs=nnx.Rngs(jax.random.key(seed)))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        return program.State(params, make_optimizer(run, config, 0.0, 0.0).init(params))

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params)
        if config.loss_chunks == 1:
            return fast.loss_fn(model, tokens)
        return program.loss_fn(model, tokens, config.loss_chunks)

    def step(
        state: program.State, tokens: jax.Array, lr: float, other_lr: float
    ) -> tuple[program.State, jax.Array]:
        value, grads = jax.value_and_grad(loss)(state.params, tokens)
        tx = make_optimizer(run, config, lr, other_lr)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return program.State(params, opt_state), value

    return Functions(jax.jit(init), jax.jit(step, donate_argnums=0), jax.jit(loss))


def execute(run: Settings, tokens: data.Tokens, vocab_size: int) -> dict[str, Any]:
    """Trains one model.

    Args:
      run: its settings.
      tokens: of the vocabulary of its config.
      vocab_size: number of tokens in that.

    Returns:
      What is kept of it. The validation loss is that of the last step on the same
      text for every run with the same window; it is None where training diverged.
    """
    other_lr = None if run.other_lr is None else 0.0
    compiled = dataclasses.replace(run, lr=0.0, other_lr=other_lr, seed=0)
    functions = make_functions(compiled, vocab_size)
    state = functions.init(run.seed)
    state_bytes = table_state_bytes(run, state.params)
    batches = data.train_batches(tokens.train, run.window, run.batch, run.seed)
    start, losses = time.perf_counter(), []
    for _ in tqdm(range(run.steps), leave=False, mininterval=1, desc=run.arm):
        state, loss = functions.step(state, next(batches), run.lr, run.other_lr or 0.0)
        losses.append(float(loss))
        if not math.isfinite(losses[-1]):
            break
    size = min(run.batch, 64)  # one size of logits for large batches
    n_batches = VALIDATION_TOKENS // (size * run.window)
    validation = data.validation_batches(tokens.validation, run.window, size, n_batches)
    final = float(np.mean([functions.loss(state.params, b) for b in validation]))
    finite = math.isfinite(losses[-1]) and math.isfinite(final)
    return {
        "settings": dataclasses.asdict(run),
        "validation_loss": final if finite else None,
        "train_losses": _thinned(losses) if finite else None,
        "steps": len(losses),
        "table_state_bytes": state_bytes,
        "seconds": round(time.perf_counter() - start, 1),
    }


def table_state_bytes(run: Settings, params: Any) -> int:
    """Returns the bytes of optimizer state of the token tables."""
    total = 0
    for name in {"embed", "lm_head"} & params.keys():
        trained = run.tables in ("both", name)
        scale_by = ARMS[run.arm if trained else "adam"].scale_by
        init = scale_by(run.b2 if trained else ARMS["adam"].b2).init
        state = jax.eval_shape(init, {name: params[name]})
        total += sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return total


def _thinned(losses: list[float]) -> list[float]:
    """Returns the means over 16 parts of a run, or fewer where it has fewer steps."""
    parts = np.array_split(losses, min(16, len(losses)))
    return [round(float(np.mean(part)), 4) for part in parts]
