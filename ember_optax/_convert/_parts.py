"""The parts of an optimizer state that hold something for each parameter or step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from ember_optax._ember import EmberState
from ember_optax._paths import by_path, quoted
from ember_optax._rule import TableMoments

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


ByPath = Mapping[str, Dense | Factored]


def map_parts(convert: Callable[[Any], Any], state: Any) -> Any:
    """Replaces the states of Adam and Ember, wherever they are in a state."""
    return jax.tree.map(
        lambda part: convert(part) if isinstance(part, PARTS) else part,
        state,
        is_leaf=lambda part: isinstance(part, PARTS),
    )


def moments_by_path(state: Any) -> dict[str, Dense | Factored]:
    """Returns the moments of Adam and Ember by the path of their parameter.

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

    for part in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, PARTS)):
        if isinstance(part, EmberState):
            for path, table in part.tables.items():
                add(path, Factored(part.count, table))
        elif isinstance(part, optax.ScaleByAdamState):
            mu = jax.tree.leaves(part.mu)
            for m, (path, nu) in zip(mu, list(by_path(part.nu).items()), strict=True):
                add(path, Dense(jnp.asarray(part.count), m, nu))
    if not found:
        leaves = ", ".join(quoted(path) for path, _ in list(by_path(state).items())[:5])
        raise ValueError(
            "No moments of Adam or Ember were found in a state of type"
            f" {type(state).__name__} with the leaves {leaves or 'none'}, but an"
            " optax.ScaleByAdamState or ember_optax.EmberState is needed. Restore"
            " checkpoints with jax.eval_shape(tx.init, params) as their target."
        )
    return found


def is_counter(part: Any) -> bool:
    """Whether a part counts steps and does nothing else, as those of schedules do."""
    return getattr(part, "_fields", None) == ("count",)


def counters(state: Any) -> dict[str, jax.Array]:
    """Returns the counts of schedules by their path in the state."""
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_counter)
    return {
        jax.tree_util.keystr(path): part.count
        for path, part in leaves
        if is_counter(part)
    }


def common_count(counts: Mapping[str, jax.Array]) -> jax.Array:
    """Returns a copy of the one count that all have; while tracing, of the first.

    No array may be twice in a state, or it could not be donated.

    Args:
      counts: int32[], by what they belong to.

    Raises:
      ValueError: they differ.
    """
    known = {name: int(n) for name, n in counts.items() if not isinstance(n, Tracer)}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{n} for {quoted(name)}" for name, n in known.items())
        raise ValueError(
            f"The numbers of steps differ in the given state ({listed}), but in that of"
            " tx there is one for all of them. Set them to the one that is right, with"
            " optax.tree.set(state, count=...)."
        )
    return jnp.array(next(iter(counts.values())))
