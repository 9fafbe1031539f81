"""Supervised training with tunix's `PeftTrainer`, losses and answers."""

# pyright: reportMissingImports=false

import itertools
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import flags
from flax import nnx
from ml_collections import config_flags
from tensorboardX import SummaryWriter
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.sft import hooks, peft_trainer

import ember_optax
from examples.lm import Config, command
from examples.lm.config import flat
from examples.lm.errors import UserError
from examples.post_training import chats
from examples.post_training.chats import Batch, ChatTokenizer, Example
from examples.post_training.optimizer import EMBER_B2


def start(run: Callable[[Config, bool], object], config: str) -> None:
    """Runs a program with the flags `--config`, by default this file, and `--compare`.

    The default is an argument and not the flag's default, of which ml_collections would
    report a mistyped field with a traceback.
    """
    if not any(re.match("--?config(=|$)", argument) for argument in sys.argv):
        sys.argv.insert(1, f"--config={config}")
    config_flags.DEFINE_config_file("config", help_string=f"By default {config}.")
    flags.DEFINE_bool("compare", False, "Train with Ember and with AdamW.")

    def main() -> None:
        run(flags.FLAGS.config, flags.FLAGS.compare)

    command.start(main)


def check_numbers(config: Config) -> None:
    """Raises UserError if a number in the config is negative or NaN."""
    for name, value in flat(config).items():
        if isinstance(value, (int, float)) and not value >= 0:
            raise UserError(f"--config.{name} is {value}, but must not be negative.")


def prepare_workdir(config: Config, runs: Iterable[str]) -> Path:
    """Makes the directory of some runs, and deletes earlier runs of the same names.

    Raises:
      UserError: there are such runs and the config says neither to delete nor to resume
        them, or the model to start from is one of them.
    """
    workdir = Path(config.workdir)
    used = [workdir / name for name in runs if (workdir / name).exists()]
    if used and not config.get("resume"):
        if not config.overwrite:
            raise UserError(
                f"{used[0]} holds an earlier run: pass --config.overwrite to delete it,"
                " or another --config.workdir."
            )
        for directory in used:
            if Path(config.model).resolve().is_relative_to(directory.resolve()):
                raise UserError(
                    f"--config.model is in {directory}, which --config.overwrite would"
                    " delete: give another --config.workdir."
                )
            shutil.rmtree(directory)
    workdir.mkdir(parents=True, exist_ok=True)
    return workdir


def batches(
    examples: Sequence[Example], length: int, rows: int, seed: int
) -> Iterator[Batch]:
    """Yields packed batches without end, every epoch in another order."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(examples))
        yield from in_batches(chats.pack((examples[i] for i in order), length), rows)


def in_batches(packed: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """Stacks packed rows; the last batch is filled up with empty ones."""
    while part := [*itertools.islice(packed, rows)]:
        part += [Batch(*map(np.zeros_like, part[0]))] * (rows - len(part))
        yield Batch(*map(np.concatenate, zip(*part, strict=True)))


def plain_text(
    tokenizer: ChatTokenizer, text: str, length: int, rows: int
) -> list[Batch]:
    """Cuts a text into at most two batches, with a loss on every token."""
    ids = np.array(tokenizer.encode(text)[: 2 * rows * length], np.int32)
    if len(ids) < 2:
        raise UserError("--config.plain_text is empty.")
    parts = (ids[i : i + length] for i in range(0, len(ids), length))
    examples = (Example(part, np.ones(len(part), bool)) for part in parts)
    return [*in_batches(chats.pack(examples, length), rows)]


def train(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    data: Iterator[Batch],
    steps: int,
    checkpoints: Path | None = None,
    checkpoint_every: int = 0,
    tensorboard: Path | None = None,
) -> list[float]:
    """Trains all parameters of a model in place; returns the loss of each step.

    With a directory of checkpoints, it continues from the last one there. With one for
    TensorBoard, it writes losses and `ember_optax.monitor` there.
    """
    trainer = peft_trainer.PeftTrainer(
        model,
        optimizer,
        peft_trainer.TrainingConfig(
            max_steps=steps,
            # tunix requires it. Without evaluation data it does nothing.
            eval_every_n_steps=steps,
            checkpoint_root_directory=checkpoints and str(checkpoints.absolute()),
            checkpointing_options=ocp.CheckpointManagerOptions(
                save_interval_steps=checkpoint_every or 1, max_to_keep=2
            ),
        ),
    )
    trainer.with_gen_model_input_fn(lambda batch: {"batch": batch})
    trainer.with_loss_fn(mean_loss)
    board = tensorboard and SummaryWriter(
        str(tensorboard), purge_step=trainer.train_steps
    )
    if board:
        trainer.with_training_hooks(Board(board))
    trainer.train(data)
    if board:
        board.close()
    logger: Any = trainer.metrics_logger
    if not logger.metric_exists("", "loss", "train"):  # no step was left
        return []
    return logger.get_metric_history("", "loss", "train").tolist()


class Board(hooks.TrainingHooks):
    """Writes losses and `ember_optax.monitor` to TensorBoard, at every step.

    With tunix's own logger, the directory of one run would also get the metrics of the
    next: `jax.monitoring` never clears its listeners of scalars.
    """

    def __init__(self, writer: SummaryWriter):
        self._writer = writer

    def on_train_step_start(self, train_ctx: Any) -> None:
        if isinstance(train_ctx.optimizer.opt_state, ember_optax.WithEmberState):
            scalars = jax.device_get(_monitor(train_ctx.optimizer, train_ctx.model))
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, train_ctx.train_steps)

    on_train_end = on_train_step_start

    def on_train_step_end(
        self, train_ctx: Any, train_step: int, train_loss: float
    ) -> None:
        self._writer.add_scalar("loss", train_loss, train_step)

    def _nothing(self, *_: Any) -> None:
        """tunix calls all hooks."""

    on_train_start = on_eval_step_start = on_eval_step_end = _nothing


@nnx.jit
def _monitor(optimizer: nnx.Optimizer, model: nnx.Module) -> dict[str, jax.Array]:
    params = nnx.state(model, nnx.Param)
    return ember_optax.monitor(optimizer.opt_state, params=params, b2=EMBER_B2)


def evaluate(model: nnx.Module, data: Sequence[Batch]) -> float:
    """Returns the loss in nats per token that has one."""
    sums = [_loss_sum(model, batch) for batch in data]
    return float(sum(sums)) / sum(int(batch.has_loss[:, 1:].sum()) for batch in data)


def mean_loss(model: Any, batch: Batch) -> jax.Array:
    return loss_sum(model, batch) / jnp.maximum(batch.has_loss[:, 1:].sum(), 1)


def loss_sum(model: Any, batch: Batch) -> jax.Array:
    n = batch.tokens.shape[1]
    # Each segment is a sequence of its own.
    same = batch.segments[:, :, None] == batch.segments[:, None, :]
    attention_mask = same & jnp.tril(jnp.ones((n, n), bool))
    positions = attention_mask.sum(-1) - 1
    logits, _ = model(batch.tokens, positions, None, attention_mask)
    found = optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1].astype(jnp.float32), batch.tokens[:, 1:]
    )
    return (found * batch.has_loss[:, 1:]).sum()


_loss_sum = nnx.jit(loss_sum)


def answers(
    model: Any, tokenizer: ChatTokenizer, questions: Sequence[str], tokens: int
) -> list[str]:
    """Returns the likeliest answers to questions, of at most so many tokens."""
    prompts = [tokenizer.prompt(question) for question in questions]
    longest = max(len(tokenizer.encode(prompt)) for prompt in prompts)
    config = model.config
    cache = CacheConfig(
        cache_size=longest + tokens,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )
    sampler = Sampler(model, tokenizer, cache)
    return sampler(prompts, tokens, max_prompt_length=longest).text
