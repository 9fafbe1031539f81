"""Ember in Kauldron, for Gemma: `optimizer=` and `sharding=` of `kd.train.Trainer`.

    optimizer=ember_kauldron.make_optimizer(1e-5),
    sharding=kd.sharding.ShardingStrategy(
        params=kd.sharding.FSDPSharding(), opt_state=ember_kauldron.replicate
    ),

Save it under another name than `kauldron.py`, which would shadow the package.

- Clipping: Kauldron does not clip, this optimizer does.
- Frozen parameters: wrap it in `kd.optim.partial_updates` with
  `mask=kd.optim.exclude("embedder")`. They have no state and no part in the norm.
- LoRA: the same with `mask=kd.optim.select("lora")`. AdamW trains the factors.
- Kauldron sets no mesh while it creates the state, so JAX chooses the shardings of
  Ember's state unless `replicate` gives them.
"""

from functools import partial
from typing import Any

import jax
import optax
from kauldron import kd  # pyright: ignore[reportMissingImports]

import ember_optax


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    embed_learning_rate: optax.ScalarOrSchedule | None = None,
    head_learning_rate: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformation:
    """Makes AdamW for the body and Ember for the tables, with one clipping norm.

    To finetune a trained model, keep the tables at the body's learning rate and at most
    at 0.001 of the table's root mean square, or freeze them.

    Args:
      learning_rate: learning rate of the body.
      embed_learning_rate: learning rate of Gemma's per-layer embeddings; None for the
        body's.
      head_learning_rate: learning rate of Gemma's tied table; None for the body's.
    """
    if embed_learning_rate is None:
        embed_learning_rate = learning_rate
    if head_learning_rate is None:
        head_learning_rate = learning_rate
    is_matrix = partial(jax.tree.map, lambda x: x.ndim > 1)
    return ember_optax.with_ember(
        optax.adamw(learning_rate, weight_decay=0.01, mask=is_matrix),
        embed_learning_rate=embed_learning_rate,
        head_learning_rate=head_learning_rate,
        b2=0.999,
        max_norm=1.0,
    )


def replicate(opt_state: Any) -> Any:
    """Makes shardings that replicate Ember's state and leave the rest to JAX."""

    def is_ember(node: Any) -> bool:
        return isinstance(node, ember_optax.EmberState)

    # pyright resolves `kauldron` to this file.
    replicated = kd.sharding.REPLICATED  # pyright: ignore
    return jax.tree.map(
        lambda node: replicated if is_ember(node) else None,
        opt_state,
        is_leaf=is_ember,
    )
