"""Ember in EasyDeL: registers `optimizer="ember"` for its `TrainingArguments`.

    import ember_easydel  # before the trainer is created

    TrainingArguments(optimizer="ember", weight_decay=0.0, ...)

Save it under another name than `easydel.py`, which would shadow the package. The fields
of `EmberConfig` are set with `extra_optimizer_kwargs={"frozen": "embed_tokens"}`.

- Clipping: leave `clip_grad` unset. `max_norm` clips all gradients.
- Weight decay: set `weight_decay=0.0` in the arguments, because EasyDeL applies its
  default of 0.01 to every parameter, tables included. `decay` is the body's.
- Frozen parameters: set `frozen`. EasyDeL 0.3.0 ignores the argument
  `frozen_parameters`.
- LoRA: EasyDeL gives the optimizer only the factors. AdamW trains all of them.
"""

import dataclasses
import re
from functools import partial
from typing import Any

import jax
import optax
from eformer.optimizers import (  # pyright: ignore[reportMissingImports]
    AdamWConfig,
    OptimizerBuilder,
    register_optimizer,
)

import ember_optax


@dataclasses.dataclass
class EmberConfig(AdamWConfig):
    """EasyDeL's AdamW for the body, with Ember for the tables.

    To finetune a trained model, keep the tables at the body's learning rate and at most
    at 0.001 of the table's root mean square, or freeze them.

    Attributes:
      embed_learning_rate: peak for input tables; None for the body's.
      head_learning_rate: peak for heads and tied tables; None for the body's.
      body_learning_rate: `learning_rate` of the arguments. Needed with the two above,
        because EasyDeL passes on only its schedule, whose shape they follow.
      decay: weight decay of the body.
      max_norm: largest global norm of the gradients.
      frozen: regular expression of the paths that are not trained.
    """

    embed_learning_rate: float | None = None
    head_learning_rate: float | None = None
    body_learning_rate: float | None = None
    decay: float = 0.01
    max_norm: float = 1.0
    frozen: str | None = None


@register_optimizer("ember")
@dataclasses.dataclass
class EmberBuilder(OptimizerBuilder):
    """Builds AdamW for the body and Ember for the tables, with one clipping norm."""

    config: EmberConfig

    def build(self, scheduler: optax.Schedule) -> optax.GradientTransformation:
        c = self.config

        def rate(peak: float | None) -> optax.Schedule:
            if peak is None:
                return scheduler
            if c.body_learning_rate is None:
                raise ValueError("Set body_learning_rate to that of the arguments.")
            scale = peak / c.body_learning_rate
            return lambda count: scale * scheduler(count)

        body = optax.adamw(
            scheduler, c.b1, c.b2, c.eps, c.eps_root, c.mu_dtype, weight_decay=c.decay
        )
        tx = ember_optax.with_ember(
            body,
            embed_learning_rate=rate(c.embed_learning_rate),
            head_learning_rate=rate(c.head_learning_rate),
            b2=0.999,
            max_norm=c.max_norm,
            labels=partial(
                ember_optax.label_token_tables,
                embed="embed",
                head="head",
                on_missing="ignore",
            ),
        )
        if (pattern := c.frozen) is None:
            return tx

        def label(key_path: Any, _: Any) -> str:
            path = jax.tree_util.keystr(key_path, simple=True, separator="/")
            return "frozen" if re.search(pattern, path) else "trained"

        return optax.multi_transform(
            {"trained": tx, "frozen": optax.set_to_zero()},
            partial(jax.tree_util.tree_map_with_path, label),
        )
