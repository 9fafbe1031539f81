"""Ember in a loop of one's own with Flax linen: copy `labels` and `make_optimizer`.

    python -m benchmarks.trainers.run linen_loop

- Frozen parameters have the label `frozen`: no state and no update. The loss stops
  their gradients, or the norm that clips the others would count them.
- LoRA is the same with `frozen` for all that is not a factor. No table is left then,
  and `missing="body"` gives the factors to AdamW: they have no row for each token.
"""

import re
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import jax
import optax
import orbax.checkpoint as ocp
from flax.training.train_state import TrainState

import ember_optax


def labels(params: Any, frozen: str | None = None) -> Any:
    """Labels `embed`, `head`, `body`, and `frozen` where that is found in the path."""
    roles = ember_optax.label_token_tables(
        params, embed="embed", head="head", missing="body"
    )

    def label(key_path: Any, role: str) -> str:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        return "frozen" if frozen and re.search(frozen, path) else role

    return jax.tree_util.tree_map_with_path(label, roles)


def make_optimizer(
    schedule: optax.Schedule, embed: float, head: float, frozen: str | None = None
) -> optax.GradientTransformation:
    """Returns AdamW on the body, Ember on the tables, all clipped by one norm.

    Args:
      schedule: learning rate of the body.
      embed: that of the embedding, as a multiple of it.
      head: that of the head, likewise.
      frozen: a regular expression of paths that are not trained.
    """
    b2 = ember_optax.adafactor_decay()

    def table(multiple: float) -> optax.GradientTransformation:
        return ember_optax.ember(lambda count: multiple * schedule(count), b2)

    # Weight decay is the body's, and only of its matrices.
    is_matrix = partial(jax.tree.map, lambda x: x.ndim > 1)
    optimizers: dict[Any, optax.GradientTransformation] = {
        "embed": table(embed),
        "head": table(head),
        "body": optax.adamw(schedule, b2=0.95, weight_decay=0.1, mask=is_matrix),
        "frozen": optax.set_to_zero(),
    }
    routed = optax.multi_transform(optimizers, partial(labels, frozen=frozen))
    return ember_optax.clipped(routed, max_norm=1.0)


@partial(jax.jit, static_argnames="frozen", donate_argnames="state")
def train_step(
    state: TrainState, tokens: jax.Array, frozen: str | None
) -> tuple[TrainState, jax.Array]:
    def stop(x: jax.Array, label: str) -> jax.Array:
        return jax.lax.stop_gradient(x) if label == "frozen" else x

    def loss_fn(params: Any) -> jax.Array:
        params = jax.tree.map(stop, params, labels(params, frozen))
        logits = state.apply_fn({"params": params}, tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


def train(
    state: TrainState,
    batches: Iterable[jax.Array],
    manager: ocp.CheckpointManager,
    frozen: str | None = None,
) -> tuple[TrainState, list[float]]:
    """Trains on the batches that are left after the manager's last checkpoint."""
    losses = []
    if (last := manager.latest_step()) is not None:
        state = cast(Any, manager.restore(last, args=ocp.args.StandardRestore(state)))
    for step, tokens in enumerate(batches, start=1):
        if step > state.step:
            state, loss = train_step(state, tokens, frozen)
            losses.append(float(loss))
            manager.save(step, args=ocp.args.StandardSave(state))
    return state, losses
