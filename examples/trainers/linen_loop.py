"""Ember in your own training loop with Flax linen: copy `make_optimizer`.

    python -m benchmarks.trainers.run linen_loop

- Frozen parameters: wrap it in `optax.multi_transform({"trained": tx, "frozen":
  optax.set_to_zero()}, labels)`. They have no state and no part in the clipping norm.
- LoRA: freeze everything except the factors. AdamW trains them.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import jax
import optax
import orbax.checkpoint as ocp
from flax.training.train_state import TrainState

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


@partial(jax.jit, donate_argnames="state")
def train_step(state: TrainState, tokens: jax.Array) -> tuple[TrainState, jax.Array]:
    def loss_fn(params: Any) -> jax.Array:
        logits = state.apply_fn({"params": params}, tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def train(
    state: TrainState, batches: Iterable[jax.Array], manager: ocp.CheckpointManager
) -> tuple[TrainState, list[float]]:
    """Trains, starting after the manager's last checkpoint. Returns the losses too."""
    losses = []
    if (last := manager.latest_step()) is not None:
        state = cast(Any, manager.restore(last, args=ocp.args.StandardRestore(state)))
    for step, tokens in enumerate(batches, start=1):
        if step > state.step:
            state, loss = train_step(state, tokens)
            losses.append(float(loss))
            manager.save(step, args=ocp.args.StandardSave(state))
    return state, losses
