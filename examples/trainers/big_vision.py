"""Ember in big_vision: an optimizer of the name `big_vision.scale_by_adam_and_ember`.

    import ember_big_vision  # at the top of the config file

    c.optax_name = "big_vision.scale_by_adam_and_ember"
    c.optax = dict(max_norm=1.0)
    c.grad_clip_norm = None
    c.lr_mults = [("llm/embedder/.*", 1.0)]  # rate of the table, times c.lr
    c.sharding_strategy = [
        ("opt/.*/table/.*", "replicate"),  # Ember's state
        (".*", 'fsdp(axis="data")'),
    ]

Copy it under another name than `big_vision.py`, which would hide the package.

- Clipping: `max_norm`, of all that is trained. `c.grad_clip_norm` gives the same
  updates to rounding, but on a TPU reads each table's gradient once more.
- Weight decay: `c.wd` reaches `.*/kernel`, so not Gemma's table. Where a head is called
  so, say in `c.wd_mults` what to decay.
- Frozen parameters: no schedule, `c.schedule = [("llm/embedder/.*", None), ...]`. They
  have no state and are not in the norm.
- big_vision trains no LoRA factors.
"""

from functools import partial
from typing import Any

# It makes the namespace `optax.big_vision`.
import big_vision.optax  # noqa: F401  # pyright: ignore[reportMissingImports]
import optax

import ember_optax


def scale_by_adam_and_ember(
    max_norm: float = 1.0, vocab_size: int | None = None, **adam: Any
) -> optax.GradientTransformation:
    """Returns Adam on the body, Ember on the tables, all clipped by one norm.

    Args:
      max_norm: of the gradients of all that is trained.
      vocab_size: of the model. Without it names alone tell what a table is.
      **adam: options of `optax.scale_by_adam`.
    """
    routed = optax.multi_transform(
        {
            "table": ember_optax.scale_by_ember(b2=0.999),
            "body": optax.scale_by_adam(**adam),
        },
        partial(ember_optax.label_token_tables, vocab_size=vocab_size, missing="body"),
    )
    return ember_optax.clipped(routed, max_norm)


namespace: Any = optax.big_vision  # pyright: ignore[reportAttributeAccessIssue]
namespace.scale_by_adam_and_ember = scale_by_adam_and_ember
