"""Ember in your own training loop with Flax NNX: copy `make_optimizer`.

    python -m benchmarks.trainers.run nnx_loop

- Frozen parameters: an `nnx.Optimizer` updates only what `wrt` selects. Parameters that
  it does not select have no gradient and no optimizer state.
- LoRA: `wrt=nnx.LoRAParam` selects no token table, which `with_ember` reports as an
  error. Use AdamW alone there.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import optax
import orbax.checkpoint as ocp
from flax import nnx

import ember_optax


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    embed_learning_rate: optax.ScalarOrSchedule,
    head_learning_rate: optax.ScalarOrSchedule,
    vocab_size: int,
) -> optax.GradientTransformation:
    """Makes AdamW for the body and Ember for the tables, with one clipping norm."""
    is_matrix = partial(jax.tree.map, lambda x: x.ndim > 1)
    return ember_optax.with_ember(
        optax.adamw(learning_rate, b2=0.95, weight_decay=0.1, mask=is_matrix),
        embed_learning_rate=embed_learning_rate,
        head_learning_rate=head_learning_rate,
        vocab_size=vocab_size,
        max_norm=1.0,
    )


def loss_fn(model: nnx.Module, tokens: jax.Array) -> jax.Array:
    logits = model(tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return losses.mean()


@partial(nnx.jit, static_argnames="wrt")
def train_step(
    model: nnx.Module, optimizer: nnx.Optimizer, tokens: jax.Array, wrt: Any
) -> jax.Array:
    loss, grads = nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, wrt))(
        model, tokens
    )
    optimizer.update(model, grads)
    return loss


def train(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    batches: Iterable[jax.Array],
    manager: ocp.CheckpointManager,
    wrt: Any = nnx.Param,
) -> tuple[nnx.Optimizer, list[float]]:
    """Trains, starting after the manager's last checkpoint. Returns the losses too."""
    optimizer, losses = nnx.Optimizer(model, tx, wrt=wrt), []
    last = manager.latest_step() or 0
    if last:
        target = nnx.as_pure(nnx.state((model, optimizer)))
        restored = manager.restore(last, args=ocp.args.StandardRestore(target))
        nnx.update((model, optimizer), restored)
    for step, tokens in enumerate(batches, start=1):
        if step > last:
            losses.append(float(train_step(model, optimizer, tokens, wrt)))
            state = nnx.as_pure(nnx.state((model, optimizer)))
            manager.save(step, args=ocp.args.StandardSave(state))
    return optimizer, losses
