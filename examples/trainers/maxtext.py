"""Ember in MaxText: a launcher in the place of `maxtext.trainers.pre_train.train`.

    python ember_maxtext.py path/to/config.yml run_name=mine learning_rate=3e-4

Copy it under another name than `maxtext.py`, which would hide the package. MaxText
knows its own optimizers only, so `get_optimizer` is replaced where training,
`train_compile` and supervised finetuning look it up.

- Clipping: MaxText clips before the optimizer sees gradients
  (`gradient_clipping_threshold`), by the norm of all of them. So no `clipped` here.
- Weight decay: the body's own, `adam_weight_decay` with `adamw_mask`. Tables have none.
- Spike skipping and `trainable_parameters_mask` go around both, or a skipped step
  would still move the tables and a frozen table would be trained.
- LoRA: no table is left, and `missing="body"` gives the factors to the body's AdamW.
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

EMBED_RATE, HEAD_RATE = 0.2, 0.011  # peaks; width 768, see docs/choosing.md

get_builtin = optimizers.get_optimizer


def get_optimizer(
    config: Any, schedule: optax.Schedule, model: Any = None, mesh: Any = None
) -> optax.GradientTransformation:
    """Returns MaxText's optimizer with Ember on the token tables."""
    b2 = ember_optax.adafactor_decay()

    def table(peak: float) -> optax.GradientTransformation:
        return ember_optax.ember(
            lambda count: peak / config.learning_rate * schedule(count), b2
        )

    unwrapped = {"skip_step_on_spikes": False, "trainable_parameters_mask": []}
    plain = SimpleNamespace(**config.get_keys() | unwrapped)
    tx = optax.multi_transform(
        {
            "embed": table(EMBED_RATE),
            "head": table(HEAD_RATE),
            "body": get_builtin(plain, schedule, model, mesh=mesh),
        },
        partial(
            ember_optax.label_token_tables,
            vocab_size=config.vocab_size,
            embed="embed",
            head="head",
            missing="body",
        ),
    )
    if config.skip_step_on_spikes:
        tx = optimizers.skip_step_on_spikes(
            tx, config.skip_step_interval, config.skip_step_scaling_factor
        )
    if config.trainable_parameters_mask:
        tx = only(config.trainable_parameters_mask, tx)
    return tx


def only(
    patterns: list[str], tx: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Trains the parameters whose path has one of the patterns, as MaxText does."""

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
