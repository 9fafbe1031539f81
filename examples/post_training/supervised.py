"""Supervised training with tunix's `PeftTrainer`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from tunix.sft import peft_trainer
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from examples.lm import Config
from examples.lm.metrics import Record
from examples.lm.optimizer import make_optimizer

Batch = peft_trainer.TrainingInput
"""int32[batch, time] tokens, and bool[batch, time]: which of them have a loss."""


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
      phase: with its optimizer and steps, see `configs.phases.phase`.
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


def fit(
    trainer: peft_trainer.PeftTrainer, batches: Iterable[Batch], held_out: list[Batch]
) -> list[Record]:
    """Trains to the end and returns the losses by step, in nats per token."""
    start, every = trainer.train_steps, trainer.config.eval_every_n_steps
    trainer.train(batches, held_out)
    history = trainer.metrics_logger.get_metric_history
    # Before the first step as well; after it, at multiples.
    first = start // every * every
    evaluated = [start] + list(range(first + every, trainer.train_steps + 1, every))
    return [
        {"step": step, "loss": float(loss)}
        for step, loss in enumerate(history("", "loss", "train"), start=start + 1)
    ] + [
        {"step": step, "validation_loss": float(loss)}
        for step, loss in zip(evaluated, history("", "loss", "eval"), strict=True)
    ]


def batch(tokens: np.ndarray, mask: np.ndarray) -> Batch:
    return Batch(input_tokens=tokens, input_mask=mask)


def all_of(tokens: np.ndarray) -> Batch:
    """Returns a batch with a loss on every token but the first."""
    return batch(tokens, np.ones(tokens.shape, bool))


def _model_input(batch: Batch) -> dict[str, Any]:
    """Adds what the model takes beside tokens.

    Padding comes last, where causal attention never looks at it.
    """
    everything = jnp.ones(batch.input_tokens.shape, bool)
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": build_positions_from_mask(everything),
        "attention_mask": make_causal_attn_mask(everything),
    }
