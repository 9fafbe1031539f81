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
- Skipping of bad steps goes around both, or a skipped step would still move the tables.
- LoRA and frozen parameters: Levanter gives the optimizer what is trainable only, and
  with `missing="body"` all of that is Adam's if no table is left.
"""

# pyright: reportMissingImports=false

import dataclasses
from functools import partial
from typing import Any

import haliax
import jax
import jax.numpy as jnp
import optax
from levanter.optim.config import AdamConfig, OptimizerConfig
from levanter.optim.skipstep import SkipStepConfig

import ember_optax

labels = partial(
    ember_optax.label_token_tables,
    embed="embed",
    head="head",
    missing="body",
    is_leaf=lambda node: isinstance(node, haliax.NamedArray),
)


@OptimizerConfig.register_subclass("ember")
@dataclasses.dataclass(frozen=True)
class EmberConfig(AdamConfig):
    """Levanter's Adam with Ember on the token tables."""

    embed_rate: float = 0.2
    head_rate: float = 0.011

    def build(self, num_train_steps: int) -> optax.GradientTransformation:
        b2 = ember_optax.adafactor_decay()
        alone = dataclasses.replace(self, max_grad_norm=None, skip_bad_steps=False)
        body = AdamConfig.build(alone, num_train_steps)

        def make(
            learning_rate: jax.Array, embed_rate: jax.Array, head_rate: jax.Array
        ) -> optax.GradientTransformation:
            del learning_rate  # for Levanter's log; the body has its own
            embed, head = (
                ember_optax.ember(embed_rate, b2),
                ember_optax.ember(head_rate, b2),
            )
            tx = optax.multi_transform(
                {"embed": embed, "head": head, "body": body}, labels
            )
            return (
                ember_optax.clipped(tx, self.max_grad_norm)
                if self.max_grad_norm
                else tx
            )

        schedule = partial(self.lr_scheduler, num_train_steps)
        tx = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)(
            learning_rate=schedule(),
            embed_rate=schedule(override_lr=self.embed_rate),
            head_rate=schedule(override_lr=self.head_rate),
        )
        skip = SkipStepConfig.from_bool_int_or_config(self.skip_bad_steps)
        return skip.wrap(tx) if skip else tx


def switch(state: Any, tx: optax.GradientTransformation, adam_b2: float) -> Any:
    """Returns a TrainerState that goes on with Ember where Adam has stopped."""
    opt_state = ember_optax.from_adam(
        state.opt_state,
        tx,
        state.trainable_model,
        adam_b2=adam_b2,
        ember_b2=ember_optax.adafactor_decay(),
    )
    return dataclasses.replace(state, optimizer=tx, opt_state=opt_state)
