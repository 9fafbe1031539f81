"""Ember in Levanter: an optimizer of the name `ember` for its configuration.

    import ember_levanter  # before levanter.main.train_lm reads the configuration

    optimizer:
      type: ember
      learning_rate: 3e-4   # of the body, as with `type: adam`
      embed_rate: 0.2
      head_rate: 0.011

Copy it under another name than `levanter.py`, which would hide the package.

- Clipping: `max_grad_norm` is the norm of all parameters, by `clipped`.
- Weight decay: the body's own, with Levanter's mask. Tables have none.
- That mask acts on whole NamedArrays, so labels are for whole NamedArrays as well.
- LoRA and frozen parameters: Levanter gives the optimizer what is trainable only, and
  with `missing="body"` all of that is Adam's if no table is left.
"""

import dataclasses
from functools import partial
from typing import Any

import haliax  # pyright: ignore[reportMissingImports]
import optax
from levanter.optim.config import (  # pyright: ignore[reportMissingImports]
    AdamConfig,
    OptimizerConfig,
)

import ember_optax


def is_named(node: Any) -> bool:
    return isinstance(node, haliax.NamedArray)


@OptimizerConfig.register_subclass("ember")
@dataclasses.dataclass(frozen=True)
class EmberConfig(AdamConfig):
    """Levanter's Adam with Ember on the token tables."""

    embed_rate: float = 0.2
    head_rate: float = 0.011

    def build(self, num_train_steps: int) -> optax.GradientTransformation:
        b2 = ember_optax.adafactor_decay()

        def table(peak: float) -> optax.GradientTransformation:
            return ember_optax.ember(
                self.lr_scheduler(num_train_steps, override_lr=peak), b2
            )

        adam = {field.name: getattr(self, field.name) for field in BODY_FIELDS}
        body = AdamConfig(**adam | {"max_grad_norm": None})
        routed = optax.multi_transform(
            {
                "embed": table(self.embed_rate),
                "head": table(self.head_rate),
                "body": body.build(num_train_steps),
            },
            partial(
                ember_optax.label_token_tables,
                embed="embed",
                head="head",
                missing="body",
                is_leaf=is_named,
            ),
        )
        if not self.max_grad_norm:
            return routed
        return ember_optax.clipped(routed, self.max_grad_norm)


BODY_FIELDS = dataclasses.fields(AdamConfig)
