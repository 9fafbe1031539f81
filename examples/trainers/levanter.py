"""Ember in Levanter: registers `type: ember` for the optimizer of a configuration.

    import ember_levanter  # before levanter.main.train_lm reads the configuration

    optimizer:
      type: ember
      learning_rate: 3e-4   # of the body, as with `type: adam`
      embed_learning_rate: 0.2
      head_learning_rate: 0.004

Save it under another name than `levanter.py`, which would shadow the package.

- Clipping: `max_grad_norm` clips all gradients.
- Weight decay: Levanter's, for the body only. Its mask acts on whole NamedArrays, so
  the labels do too.
- Skipped steps: `skip_bad_steps` wraps the whole optimizer, so a skipped step changes
  neither body nor tables.
- Learning rates: these are peaks to begin a search with. docs/choosing.md has a rule
  for embeddings with a norm behind them, which these models lack.
- `vocab_size`: the number of tokens of your tokenizer. Marin's models need it, whose
  head is called `output_proj`.
- Frozen parameters and LoRA: Levanter gives the optimizer only what it trains. If that
  contains no table, Adam trains all of it.
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


@OptimizerConfig.register_subclass("ember")
@dataclasses.dataclass(frozen=True)
class EmberConfig(AdamConfig):
    """Levanter's Adam for the body, with Ember for the token tables."""

    embed_learning_rate: float = 0.2
    head_learning_rate: float = 0.004
    vocab_size: int | None = None  # of the model, where names do not tell its tables

    def build(self, num_train_steps: int) -> optax.GradientTransformation:
        plain = dataclasses.replace(self, max_grad_norm=None, skip_bad_steps=False)
        body = AdamConfig.build(plain, num_train_steps)
        labels = partial(
            ember_optax.label_token_tables,
            vocab_size=self.vocab_size,
            embed="embed",
            head="head",
            on_missing="ignore",
            is_leaf=lambda node: isinstance(node, haliax.NamedArray),
        )

        def make(
            learning_rate: jax.Array,
            embed_learning_rate: jax.Array,
            head_learning_rate: jax.Array,
        ) -> optax.GradientTransformation:
            del learning_rate  # only for Levanter's log: the body has its own
            return ember_optax.with_ember(
                body,
                embed_learning_rate=embed_learning_rate,
                head_learning_rate=head_learning_rate,
                max_norm=self.max_grad_norm or None,
                labels=labels,
            )

        schedule = partial(self.lr_scheduler, num_train_steps)
        tx = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)(
            learning_rate=schedule(),
            embed_learning_rate=schedule(override_lr=self.embed_learning_rate),
            head_learning_rate=schedule(override_lr=self.head_learning_rate),
        )
        skip = SkipStepConfig.from_bool_int_or_config(self.skip_bad_steps)
        return skip.wrap(tx) if skip else tx


def switch(state: Any, tx: optax.GradientTransformation, adam_b2: float) -> Any:
    """Converts a TrainerState of Adam to one that continues with Ember."""
    opt_state = ember_optax.from_adam(
        state.opt_state, tx, state.trainable_model, adam_b2=adam_b2
    )
    return dataclasses.replace(state, optimizer=tx, opt_state=opt_state)
