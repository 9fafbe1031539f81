"""What the states of Adam and Ember know of each parameter, and of the steps taken."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from ember_optax._ember import EmberState
from ember_optax._paths import by_path, path_from_key, quoted
from ember_optax._rule import TableMoments
from ember_optax._states import StateLeaf

PARTS = (optax.ScaleByAdamState, EmberState)


class Dense(NamedTuple):
    """What Adam knows of a parameter."""

    count: jax.Array
    mu: jax.Array
    nu: jax.Array


class Factored(NamedTuple):
    """What Ember knows of a table."""

    count: jax.Array
    moments: TableMoments
    bias_correction: jax.Array


ByPath = Mapping[str, Dense | Factored]


def moments_by_path(
    state: Any, leaves: Iterable[StateLeaf]
) -> dict[str, Dense | Factored]:
    """Returns the moments of Adam and Ember by the path of their parameter.

    Args:
      state: of an optimizer.
      leaves: its leaves, those of `PARTS` whole.

    Raises:
      ValueError: there are none, or two for one parameter.
    """
    found: dict[str, Dense | Factored] = {}

    def add(path: str, moments: Dense | Factored) -> None:
        if path in found:
            raise ValueError(
                f"The optimizer state has the moments of {quoted(path)} twice, but only"
                " one Adam or Ember may train a parameter here: convert the states of"
                " chained optimizers one by one."
            )
        found[path] = moments

    leaves = list(leaves)
    for part in (leaf.value for leaf in leaves):
        if isinstance(part, EmberState):
            for key, table in part.tables.items():
                add(
                    path_from_key(key),
                    Factored(part.count, table, part.bias_correction),
                )
        elif isinstance(part, optax.ScaleByAdamState):
            mu = jax.tree.leaves(part.mu)
            for m, (path, nu) in zip(mu, by_path(part.nu).items(), strict=True):
                add(path, Dense(jnp.asarray(part.count), m, nu))
    if not found:
        names = ", ".join(quoted(leaf.path) for leaf in leaves[:5])
        raise ValueError(
            "No moments of Adam or Ember were found in a state of type"
            f" {type(state).__name__} with the leaves {names or 'none'}, but an"
            " optax.ScaleByAdamState or ember_optax.EmberState is needed. Restore"
            " checkpoints with jax.eval_shape(tx.init, params) as their target."
        )
    return found


def common_value(values: Mapping[str, jax.Array]) -> jax.Array:
    """Returns a copy of the one scalar that all are; while tracing, of the first.

    No array may be twice in a state, or it could not be donated.

    Args:
      values: by what they belong to, all of them steps taken or the like.

    Raises:
      ValueError: they differ.
    """
    known = {k: x.item() for k, x in values.items() if not isinstance(x, Tracer)}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{x} for {quoted(name)}" for name, x in known.items())
        raise ValueError(
            f"The numbers of steps differ in the given state ({listed}), but in that of"
            " tx there is one for all of them. Set them to the one that is right, with"
            " optax.tree.set(state, count=...)."
        )
    return jnp.array(next(iter(values.values())))
