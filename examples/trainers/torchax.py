"""Ember for a PyTorch model, for instance of Hugging Face, that torchax trains in JAX.

    model = AutoModelForCausalLM.from_pretrained(...)
    step, weights, buffers, opt_state = prepare(model, loss_fn, make_optimizer(1e-5))
    for tokens, labels in batches:  # as tensors of torchax: torch_view(jax_array)
        loss, weights, opt_state = step(weights, buffers, opt_state, (tokens,), labels)

Save it under another name than `torchax.py`, which would shadow the package.

- Clipping: torchax does not clip, this optimizer does.
- Frozen parameters and LoRA: set `requires_grad` before `prepare`, as `peft` does. What
  is not trained becomes a buffer. If no table is left, AdamW trains all of it.
- Tied tables are one parameter, called `model.embed_tokens.weight`.
- Checkpoints: convert with `torchax.interop.jax_view`, and back with `torch_view`.
"""

# pyright takes this file for the package.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
import torch
import torchax
from torchax import interop
from torchax.train import make_train_step

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


def prepare(
    model: torch.nn.Module,
    loss_fn: Callable[[Any, torch.Tensor], torch.Tensor],
    tx: optax.GradientTransformation,
) -> tuple[Callable[..., Any], dict[str, Any], dict[str, Any], Any]:
    """Makes a compiled training step, and what it needs.

    Args:
      model: the model.
      loss_fn: function from the model's output and the labels to the loss.
      tx: the optimizer.

    Returns:
      The step, the trained weights, the other tensors and the optimizer's state.
    """
    module = interop.JittableModule(model)
    weights, buffers = torchax.default_env().to_xla((module.params, module.buffers))

    def apply(weights: Any, buffers: Any, args: tuple[Any, ...]) -> Any:
        return module.functional_call("forward", weights, buffers, *args)

    step = interop.jax_jit(
        make_train_step(apply, loss_fn, tx),
        kwargs_for_jax_jit={"donate_argnums": (0, 2)},
    )
    return step, weights, buffers, interop.call_jax(tx.init, weights)
