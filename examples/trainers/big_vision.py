"""Ember in big_vision: the optimizer `big_vision.scale_by_adam_and_ember`.

    import ember_big_vision  # at the top of the config file

    c.optax_name = "big_vision.scale_by_adam_and_ember"
    c.grad_clip_norm = 1.0
    c.lr_mults = [("llm/embedder/.*", 1e-5 / c.lr)]  # the table's learning rate
    c.sharding_strategy = [
        ("opt/.*/table/.*", "replicate"),  # Ember's state
        (".*", 'fsdp(axis="data")'),
    ]

Save it under another name than `big_vision.py`, which would shadow the package.

- Learning rates: big_vision applies them after the optimizer. Without `lr_mults` the
  table has the body's, which is right for finetuning up to 0.001 of the table's root
  mean square.
- Clipping: big_vision clips before the optimizer. On a TPU this reads the gradient of
  each table once more than clipping inside `with_ember`.
- Weight decay: `c.wd` applies to `.*/kernel`, which is not Gemma's table but may be the
  head of another model. Select what decays with `c.wd_mults`.
- Frozen parameters: give them no schedule, `c.schedule = [("llm/embedder/.*", None),
  ...]`. They have no state and no part in the norm.
"""

from functools import partial
from typing import Any

# This import creates the namespace `optax.big_vision`.
import big_vision.optax  # noqa: F401  # pyright: ignore[reportMissingImports]
import optax

import ember_optax


def scale_by_adam_and_ember(
    vocab_size: int | None = None, **adam: Any
) -> optax.GradientTransformation:
    """Makes Adam for the body and Ember for the tables, without learning rates.

    Args:
      vocab_size: number of tokens. Without it, names alone tell which are tables.
      **adam: options of `optax.scale_by_adam`.
    """
    return optax.multi_transform(
        {
            "table": ember_optax.scale_by_ember(b2=0.999),
            "body": optax.scale_by_adam(**adam),
        },
        partial(ember_optax.label_token_tables, vocab_size=vocab_size),
    )


namespace: Any = optax.big_vision  # pyright: ignore[reportAttributeAccessIssue]
namespace.scale_by_adam_and_ember = scale_by_adam_and_ember
