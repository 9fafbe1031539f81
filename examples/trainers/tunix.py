"""Ember in tunix: give `make_optimizer(...)` where tunix asks for an optimizer.

    PeftTrainer(model, make_optimizer(...), config)               # full finetuning
    DPOTrainer(model, reference, make_optimizer(...), config)
    RLTrainingConfig(actor_optimizer=make_optimizer(...), ...)    # GRPO and others

Copy it under another name than `tunix.py`, which would hide the package.

- Clipping: tunix does none. `clipped` does, by the norm of all that is trained. With
  `gradient_accumulation_steps` it clips the mean of the gradients.
- Weight decay: the body's, and only of its matrices.
- Frozen parameters: a regular expression. They have no state and are not in the norm.
- LoRA: tunix trains the factors alone. They have no row for each token, so all is left
  to AdamW by `missing="body"`: Ember saves nothing there.
- Models without weights are replicated: shard them before the trainer sees them.
"""

import re
from functools import partial
from typing import Any

import jax
import optax

import ember_optax


def make_optimizer(
    schedule: optax.Schedule, embed: float, head: float, frozen: str | None = None
) -> optax.GradientTransformation:
    """Returns AdamW on the body, Ember on the tables, all clipped by one norm.

    Args:
      schedule: learning rate of the body.
      embed: that of the embedding, as a multiple of it.
      head: that of the head, likewise; of a tied table this one.
      frozen: a regular expression of paths that are not trained.
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
    trained = ember_optax.clipped(routed, max_norm=1.0)
    if frozen is None:
        return trained

    def label(key_path: Any, _: Any) -> str:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        return "frozen" if re.search(frozen, path) else "trained"

    return optax.multi_transform(
        {"trained": trained, "frozen": optax.set_to_zero()},
        partial(jax.tree_util.tree_map_with_path, label),
    )
