"""Ember in a loop of one's own with Flax NNX: copy `make_optimizer`.

    python -m benchmarks.trainers.run nnx_loop

- Frozen parameters: an `nnx.Optimizer` updates what `wrt` selects. The others have no
  gradient and no state.
- LoRA: with `wrt=nnx.LoRAParam` no table is left, and `missing="body"` gives all that
  is left to AdamW. Factors of LoRA have no row for each token, so they stay there.
"""

from collections.abc import Iterable
from functools import partial

import jax
import optax
import orbax.checkpoint as ocp
from flax import nnx

import ember_optax


def make_optimizer(
    schedule: optax.Schedule, embed: float, head: float
) -> optax.GradientTransformation:
    """Returns AdamW on the body, Ember on the tables, all clipped by one norm.

    Args:
      schedule: learning rate of the body.
      embed: that of the embedding, as a multiple of it.
      head: that of the head, likewise.
    """
    b2 = ember_optax.adafactor_decay()

    def table(multiple: float) -> optax.GradientTransformation:
        return ember_optax.ember(lambda count: multiple * schedule(count), b2)

    # Weight decay is the body's, and only of its matrices.
    is_matrix = partial(jax.tree.map, lambda x: x.ndim > 1)
    routed = optax.multi_transform(
        {
            "embed": table(embed),
            "head": table(head),
            "body": optax.adamw(schedule, b2=0.95, weight_decay=0.1, mask=is_matrix),
        },
        partial(
            ember_optax.label_token_tables, embed="embed", head="head", missing="body"
        ),
    )
    return ember_optax.clipped(routed, max_norm=1.0)


def loss_fn(model: nnx.Module, tokens: jax.Array) -> jax.Array:
    logits = model(tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return losses.mean()


@partial(nnx.jit, static_argnames="wrt")
def train_step(
    model: nnx.Module, optimizer: nnx.Optimizer, tokens: jax.Array, wrt: type
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
    wrt: type = nnx.Param,
) -> tuple[nnx.Optimizer, list[float]]:
    """Trains on the batches that are left after the manager's last checkpoint."""
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
