"""Ember in MaxText: a launcher that replaces `maxtext.trainers.pre_train.train`.

    python ember_maxtext.py path/to/config.yml run_name=mine learning_rate=3e-4

Save it under another name than `maxtext.py`, which would shadow the package. MaxText
knows only its own optimizers, so this file replaces `get_optimizer` where training,
`train_compile` and supervised finetuning look it up.

- Clipping: MaxText clips all gradients before the optimizer
  (`gradient_clipping_threshold`), so `with_ember` has no `max_norm`.
- Weight decay: MaxText's `adam_weight_decay` with `adamw_mask`, for the body only.
- Spike skipping and `trainable_parameters_mask` wrap the whole optimizer. Inside the
  body's optimizer they would not apply to the tables.
- Finetuning: set both rates to `learning_rate`. For LoRA, which trains no table, start
  MaxText without this file.
"""

import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import optax
from absl import app
from maxtext.optimizers import optimizers  # pyright: ignore[reportMissingImports]
from maxtext.trainers.pre_train import train  # pyright: ignore[reportMissingImports]

import ember_optax

# Peaks to begin a search with. docs/choosing.md has a rule for embeddings with a norm
# behind them, which these models lack.
EMBED_LEARNING_RATE, HEAD_LEARNING_RATE = 0.2, 0.004

get_builtin = optimizers.get_optimizer


def get_optimizer(
    config: Any, schedule: optax.Schedule, model: Any = None, mesh: Any = None
) -> optax.GradientTransformation:
    """Makes MaxText's optimizer for the body, with Ember for the token tables."""

    def rate(peak: float) -> optax.Schedule:
        return lambda count: peak / config.learning_rate * schedule(count)

    unwrapped = {"skip_step_on_spikes": False, "trainable_parameters_mask": []}
    plain = SimpleNamespace(**config.get_keys() | unwrapped)
    tx: optax.GradientTransformation = ember_optax.with_ember(
        get_builtin(plain, schedule, model, mesh=mesh),
        embed_learning_rate=rate(EMBED_LEARNING_RATE),
        head_learning_rate=rate(HEAD_LEARNING_RATE),
        vocab_size=config.vocab_size,
    )
    if config.skip_step_on_spikes:
        tx = optimizers.skip_step_on_spikes(
            tx, config.skip_step_interval, config.skip_step_scaling_factor
        )
    patterns = config.trainable_parameters_mask
    if not patterns:
        return tx

    def label(key_path: Any, _: Any) -> str:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        return "trained" if any(re.search(p, path) for p in patterns) else "frozen"

    return optax.multi_transform(
        {"trained": tx, "frozen": optax.set_to_zero()},
        partial(jax.tree_util.tree_map_with_path, label),
    )


optimizers.get_optimizer = get_optimizer

if __name__ == "__main__":
    app.run(train.main)
