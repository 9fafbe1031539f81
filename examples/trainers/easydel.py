"""Ember in EasyDeL: an optimizer of the name `ember` for its `TrainingArguments`.

    import ember_easydel  # before the trainer is made

    TrainingArguments(
        optimizer="ember",
        weight_decay=0.0,
        extra_optimizer_kwargs={"embed": 1.0, "head": 1.0},
        ...,
    )

Copy it under another name than `easydel.py`, which would hide the package.

- Clipping: leave `clip_grad` out. `max_norm` here is the norm of all that is trained.
- Weight decay: `decay` here, and only of the body. `weight_decay` of the arguments is
  0.01 if left out, and EasyDeL adds it to all parameters, tables included.
- Frozen parameters: a regular expression, here. That of the arguments,
  `frozen_parameters`, is read by nothing in EasyDeL 0.3.0.
- LoRA: EasyDeL gives the optimizer the factors alone. They have no row for each token,
  so all is left to AdamW by `missing="body"`.
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
    """AdamW of the body as EasyDeL has it, and what is new.

    Attributes:
      embed: rate of the embedding, as a multiple of the body's.
      head: that of the head, likewise; of a tied table this one.
      decay: weight decay of the body.
      max_norm: of the gradients of all that is trained.
      frozen: a regular expression of paths that are not trained.
    """

    embed: float = 1.0
    head: float = 1.0
    decay: float = 0.01
    max_norm: float = 1.0
    frozen: str | None = None


@register_optimizer("ember")
@dataclasses.dataclass
class EmberBuilder(OptimizerBuilder):
    """Builds AdamW on the body, Ember on the tables, all clipped by one norm."""

    config: EmberConfig

    def build(self, scheduler: optax.Schedule) -> optax.GradientTransformation:
        c = self.config
        b2 = 0.999

        def table(multiple: float) -> optax.GradientTransformation:
            return ember_optax.ember(lambda count: multiple * scheduler(count), b2)

        body = optax.adamw(
            scheduler, c.b1, c.b2, c.eps, c.eps_root, c.mu_dtype, weight_decay=c.decay
        )
        routed = optax.multi_transform(
            {"embed": table(c.embed), "head": table(c.head), "body": body},
            partial(
                ember_optax.label_token_tables,
                embed="embed",
                head="head",
                missing="body",
            ),
        )
        trained = ember_optax.clipped(routed, c.max_norm)
        if c.frozen is None:
            return trained
        pattern = re.compile(c.frozen)

        def label(key_path: Any, _: Any) -> str:
            path = jax.tree_util.keystr(key_path, simple=True, separator="/")
            return "frozen" if pattern.search(path) else "trained"

        return optax.multi_transform(
            {"trained": trained, "frozen": optax.set_to_zero()},
            partial(jax.tree_util.tree_map_with_path, label),
        )
