"""Ember in tunix: pass `make_optimizer(...)` where tunix expects an optimizer.

    PeftTrainer(model, make_optimizer(1e-5), config)               # full finetuning
    DPOTrainer(model, reference, make_optimizer(1e-5), config)
    RLTrainingConfig(actor_optimizer=make_optimizer(1e-5), ...)    # GRPO and others

tunix's command line knows it as `opt_type: ember` if this file starts the program:

    python ember_tunix.py tunix.cli.peft_main CONFIG.yaml override_config_file=OWN.yaml

    optimizer_config:
      opt_type: ember
      learning_rate: 1e-5

`embed_learning_rate` and `head_learning_rate` are numbers there; without them the
tables follow the body's schedule. Other fields, such as `weight_decay`, have no effect:
edit them below. Save this file under another name than `tunix.py`, which would shadow
the package.

- Clipping: tunix does not clip, this optimizer does. With
  `gradient_accumulation_steps` it clips the mean gradient.
- Frozen parameters: wrap it in `optax.multi_transform({"trained": tx, "frozen":
  optax.set_to_zero()}, labels)`. They have no state and no part in the clipping norm.
- LoRA: tunix gives the optimizer only the factors. AdamW trains all of them.
- Models that are not loaded from weights are replicated: shard them yourself.
"""

import runpy
import sys
from functools import partial

import jax
import optax

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
      embed_learning_rate: learning rate of input tables; None for the body's.
      head_learning_rate: learning rate of heads and tied tables; None for the body's.
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
        labels=partial(
            ember_optax.label_token_tables,
            embed="embed",
            head="head",
            on_missing="ignore",
        ),
    )


if __name__ == "__main__":
    # tunix looks for a function of Optax by its name.
    optax.ember = make_optimizer  # pyright: ignore
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
