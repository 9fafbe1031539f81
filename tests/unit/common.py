"""Optimizers, containers and searches that several test files share."""

from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from flax import nnx

import ember_optax
from ember_optax import EmberState
from tests.unit.models import label_roles

RATE, B2 = 0.1, 0.99


def with_ember(rate: Any = RATE, b2: Any = B2) -> Any:
    return ember_optax.with_ember(
        optax.adamw(rate), embed_learning_rate=rate, head_learning_rate=rate, b2=b2
    )


def split(table: Any, body: Any, labels: Any = label_roles) -> Any:
    """One optimizer for input tables, one for heads, one for the body."""
    roles = {"embed": table(), "head": table(), "body": body}
    return optax.multi_transform(roles, labels)


def groups(rate: Any = RATE, b2: Any = B2) -> Any:
    """A state of Ember for each role."""
    return split(lambda: ember_optax.ember(rate, b2), optax.adamw(rate))


MAKERS = {"with_ember": with_ember, "multi_transform": groups}


def parts(state: Any, kind: type = EmberState) -> list[Any]:
    """All states of one kind in the state of an optimizer."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def tables(state: Any) -> dict[str, Any]:
    """Moments of all tables, by key."""
    return {k: v for part in parts(state) for k, v in part.tables.items()}


class Tables(NamedTuple):
    """Parameters in a user's own named tuple."""

    embed: Any
    lm_head: Any = None


def boxed(params: Any) -> Any:
    return jax.tree.map(lambda x: nn.LogicallyPartitioned(x, ("a", "b")), params)


# Flax called it so up to 0.12.6.
as_pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure


class NnxModel(nnx.Module):
    def __init__(self, v: int, d: int, is_tied: bool = True) -> None:
        self.embed = nnx.Embed(v, d, rngs=nnx.Rngs(0))
        self.mlp = nnx.Linear(d, d, rngs=nnx.Rngs(0))
        if not is_tied:
            self.lm_head = nnx.Linear(d, v, use_bias=False, rngs=nnx.Rngs(0))
