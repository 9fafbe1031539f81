"""Ember in Kauldron, for Gemma: `optimizer=` and `sharding=` of `kd.train.Trainer`.

    optimizer=ember_kauldron.make_optimizer(schedule, embed=1, head=1),
    sharding=kd.sharding.ShardingStrategy(
        params=kd.sharding.FSDPSharding(), opt_state=ember_kauldron.replicate
    ),

Copy it under another name than `kauldron.py`, which would hide the package.

- Clipping: Kauldron does none. `clipped` does, by the norm of all that is trained.
- Weight decay: the body's, and only of its matrices.
- Frozen parameters: `kd.optim.partial_updates` around it, with
  `mask=kd.optim.exclude("embedder")`. They have no state and are not in the norm.
- LoRA: the same with `mask=kd.optim.select("lora")`. No table is left then, and
  `missing="body"` gives the factors to AdamW: they have no row for each token.
- Kauldron sets no mesh, so jax chooses how Ember's state is sharded: `replicate` it.
"""

from functools import partial
from typing import Any

import jax
import optax
from kauldron import kd  # pyright: ignore[reportMissingImports]

import ember_optax


def make_optimizer(
    schedule: optax.Schedule, embed: float, head: float
) -> optax.GradientTransformation:
    """Returns AdamW on the body, Ember on the tables, all clipped by one norm.

    Args:
      schedule: learning rate of the body.
      embed: that of per-layer embeddings, as a multiple of it.
      head: that of Gemma's tied table, likewise.
    """
    b2 = 0.999

    def table(multiple: float) -> optax.GradientTransformation:
        return ember_optax.ember(lambda count: multiple * schedule(count), b2)

    is_matrix = partial(jax.tree.map, lambda x: x.ndim > 1)
    routed = optax.multi_transform(
        {
            "embed": table(embed),
            "head": table(head),
            "body": optax.adamw(schedule, weight_decay=0.01, mask=is_matrix),
        },
        partial(
            ember_optax.label_token_tables, embed="embed", head="head", missing="body"
        ),
    )
    return ember_optax.clipped(routed, max_norm=1.0)


def replicate(opt_state: Any) -> Any:
    """Returns shardings that replicate Ember's state and leave the rest to jax."""

    def is_ember(node: Any) -> bool:
        return isinstance(node, ember_optax.EmberState)

    # pyright takes this file for the package.
    replicated = kd.sharding.REPLICATED  # pyright: ignore
    return jax.tree.map(
        lambda node: replicated if is_ember(node) else None,
        opt_state,
        is_leaf=is_ember,
    )
