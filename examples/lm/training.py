"""The training loop."""

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from examples.lm import Config, checkpoints, data
from examples.lm.metrics import MetricsLog, Record
from examples.lm.model import Decoder
from examples.lm.optimizer import make_optimizer


class Result(NamedTuple):
    """What is left of a run."""

    step: int  # below config.steps if it was interrupted
    validation_loss: float
    seconds: float  # with compilation, validation and checkpoints
    records: list[Record]


def make_model(config: Config) -> Decoder:
    return Decoder(config.data.vocab_size, **config.model, rngs=nnx.Rngs(config.seed))


def train(config: Config, tokens: data.Tokens, run_dir: Path) -> Result:
    """Trains a model, from the start or from the last checkpoint in `run_dir`.

    Ctrl-C ends it early, after a last checkpoint.
    """
    sizes = config.sequence_length, config.batch_size
    batches = data.train_batches(tokens.train, *sizes, config.seed)
    validation = data.validation_batches(
        tokens.validation, *sizes, n_batches=config.eval_batches
    )
    model = make_model(config)
    optimizer = nnx.Optimizer(model, make_optimizer(config), wrt=nnx.Param)
    directory = run_dir / "checkpoints"
    if not config.resume:
        shutil.rmtree(directory, ignore_errors=True)
    with (
        checkpoints.open_manager(directory, config.keep_checkpoints) as manager,
        ctrl_c() as interrupted,
    ):
        step = checkpoints.restore(manager, model, optimizer, batches, config)
        log = MetricsLog(run_dir / "metrics.jsonl", step)
        start = time.perf_counter() - log.last("seconds")

        def record(**values: float) -> None:
            log.write(step=step, **values, seconds=time.perf_counter() - start)

        with progress_bar(config, run_dir.name, step) as bar:
            while step < config.steps and not interrupted.is_set():
                loss = float(train_step(model, optimizer, jnp.asarray(next(batches))))
                step += 1
                record(loss=loss)
                bar.set_postfix(step=step, loss=f"{loss:.3f}", refresh=False)
                bar.update(config.batch_size * config.sequence_length)
                if step % config.eval_every == 0 or step == config.steps:
                    record(validation_loss=evaluate(model, validation))
                if step % config.checkpoint_every == 0 or step == config.steps:
                    checkpoints.save(manager, step, model, optimizer, batches, config)
        if manager.latest_step() != step:
            checkpoints.save(manager, step, model, optimizer, batches, config)
    return Result(step, log.last("validation_loss"), log.last("seconds"), log.records)


def loss_fn(model: Decoder, tokens: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of the tokens after the first of each window."""
    logits = model(tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@nnx.jit(donate_argnums=(0, 1))
def train_step(
    model: Decoder, optimizer: nnx.Optimizer, tokens: jax.Array
) -> jax.Array:
    """Updates the model and the optimizer in place and returns the loss before."""
    loss, grads = nnx.value_and_grad(loss_fn)(model, tokens)
    optimizer.update(model, grads)
    return loss


eval_step = nnx.jit(loss_fn)


def evaluate(model: Decoder, batches: list[np.ndarray]) -> float:
    """Returns the mean loss over batches of equal size."""
    return float(np.mean([eval_step(model, jnp.asarray(b)) for b in batches]))


def progress_bar(config: Config, name: str, step: int) -> tqdm:
    tokens_per_step = config.batch_size * config.sequence_length
    return tqdm(
        desc=name,
        initial=step * tokens_per_step,
        total=config.steps * tokens_per_step,
        unit=" tokens",
        unit_scale=True,
        mininterval=0.5,
    )


@contextlib.contextmanager
def ctrl_c() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event; a second one stops the program."""
    event = threading.Event()

    def handle(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
