"""Supervised training with tunix's `PeftTrainer`."""

# pyright: reportMissingImports=false

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from tunix.sft import peft_trainer
from tunix.sft.metrics_logger import MetricsLogger
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from examples.lm import Config
from examples.lm.metrics import Record
from examples.lm.optimizer import make_optimizer


class Batch(NamedTuple):
    """Sequences, padded at their end."""

    tokens: np.ndarray  # int32[batch, time]
    mask: np.ndarray  # bool[batch, time], which tokens have a loss


def make_trainer(
    model: nnx.Module,
    phase: Config,
    eval_every: int,
    directory: Path | None = None,
    description: str = "",
) -> peft_trainer.PeftTrainer:
    """Returns a trainer of all parameters, at the last checkpoint if there is one.

    Args:
      model: to train, in place.
      phase: with its optimizer and steps, see `examples.post_training.phases.phase`.
      eval_every: steps between evaluations, and between checkpoints.
      directory: of the checkpoints, if there are to be any.
      description: for the progress bar.
    """
    return peft_trainer.PeftTrainer(
        model,
        make_optimizer(phase),
        peft_trainer.TrainingConfig(
            max_steps=phase.steps,
            eval_every_n_steps=eval_every,
            checkpoint_root_directory=directory and str(directory.absolute()),
            checkpointing_options=ocp.CheckpointManagerOptions(
                save_interval_steps=eval_every, max_to_keep=2
            ),
            pbar_description=description,
        ),
    ).with_gen_model_input_fn(_model_input)


@contextlib.contextmanager
def tensorboard(
    directory: Path | None, step: int
) -> Iterator[Callable[[Record], None]]:
    """Yields a function that shows a record in TensorBoard, if there is a directory.

    Args:
      directory: directory of the run.
      step: step at which the run begins.
    """
    if directory is None:
        yield lambda record: None
        return
    from tensorboardX import SummaryWriter  # slow to import

    with SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1) as board:

        def show(record: Record) -> None:
            for name in record.keys() - {"step"}:
                board.add_scalar(name, record[name], int(record["step"]))

        yield show


class ShownLosses(MetricsLogger):
    """What tunix logs its metrics to; losses are shown as they come."""

    def __init__(self, show: Callable[[Record], None]):
        super().__init__()
        self._show = show

    def log(
        self,
        metrics_prefix: str,
        metric_name: str,
        scalar_value: Any,
        mode: str,
        step: int,
    ) -> None:
        super().log(metrics_prefix, metric_name, scalar_value, mode, step)
        if metric_name == "loss":
            name = "validation_loss" if mode == "eval" else "loss"
            self._show({"step": step, name: float(scalar_value)})


def fit(
    trainer: peft_trainer.PeftTrainer,
    batches: Iterable[Batch],
    held_out: list[Batch],
    board: Path | None = None,
) -> list[Record]:
    """Trains to the end and returns the losses by step, in nats per token.

    Args:
      trainer: of `make_trainer`.
      batches: to train on.
      held_out: to evaluate on.
      board: the directory in which TensorBoard is to find the losses, if it is.
    """
    start, every = trainer.train_steps, trainer.config.eval_every_n_steps
    with tensorboard(board, start) as show:
        trainer.metrics_logger = ShownLosses(show)
        trainer.train(batches, held_out)
    # tunix evaluates before the first step too, and then at multiples of `every`.
    multiples = range(start - start % every + every, trainer.train_steps + 1, every)
    evaluated = [start, *multiples]
    losses = history(trainer, "", "loss", "eval")
    return [
        {"step": step, "loss": loss}
        for step, loss in enumerate(history(trainer, "", "loss"), start=start + 1)
    ] + [
        {"step": step, "validation_loss": loss}
        for step, loss in zip(evaluated, losses, strict=True)
    ]


def history(
    trainer: peft_trainer.PeftTrainer, prefix: str, name: str, mode: str = "train"
) -> list[float]:
    """Returns all values of a metric that tunix has logged, if there are any."""
    logger: Any = trainer.metrics_logger
    if not logger.metric_exists(prefix, name, mode):  # as when no step was left
        return []
    return logger.get_metric_history(prefix, name, mode).tolist()


def all_of(tokens: np.ndarray) -> Batch:
    """Returns a batch with a loss on every token but the first."""
    return Batch(tokens, np.ones(tokens.shape, bool))


def _model_input(batch: Batch) -> dict[str, Any]:
    """Adds what the model takes beside tokens.

    Padding comes last, where causal attention never looks at it.
    """
    everything = jnp.ones(batch.tokens.shape, bool)
    return {
        "input_tokens": batch.tokens,
        "input_mask": batch.mask,
        "positions": build_positions_from_mask(everything),
        "attention_mask": make_causal_attn_mask(everything),
    }
