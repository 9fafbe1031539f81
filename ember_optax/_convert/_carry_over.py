"""Everything that a converted state keeps, other than moments of Adam and Ember."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import keystr

from ember_optax._paths import quoted
from ember_optax._states import StateLeaf

# By name, because not all of these classes have a public name in Optax.
_SCHEDULES = {"ScaleByScheduleState", "WrappedScheduleState"}
_INJECTED = {"InjectHyperparamsState", "InjectStatefulHyperparamsState"}


def carry_over(
    old: Iterable[StateLeaf],
    new: Iterable[StateLeaf],
    counts: Mapping[str, jax.Array],
    *,
    keep_hyperparameters: bool = False,
) -> list[jax.Array]:
    """Fills the leaves of a new state with those of an old one.

    A leaf takes the value of the old leaf with the same path in the same field of the
    same type of state. Where the old state has several, it takes the one at the same
    place.

    Args:
      old: leaves of the given state.
      new: leaves of the state of the new optimizer.
      counts: steps that Adam and Ember have taken, by the path of the parameter.
        Schedules start there if the given state has no schedule.
      keep_hyperparameters: whether those of `optax.inject_hyperparams` are carried over
        too. By default they are those of the new optimizer.

    Raises:
      ValueError: an old leaf would be lost, has another shape, or is ambiguous.
    """
    groups: dict[Any, list[StateLeaf]] = defaultdict(list)
    for leaf in old:
        groups[leaf[:3]].append(leaf)
    steps = {keystr(leaf.key_path): leaf.value for leaf in old if _is_step(leaf)}
    claimed = set()

    def claim(leaf: StateLeaf) -> jax.Array:
        if _is_hyperparameter(leaf) and not keep_hyperparameters:
            return leaf.value
        alike = groups[leaf[:3]]
        alike = [x for x in alike if x.key_path == leaf.key_path] or alike
        if not alike:
            return common_value(steps or counts) if _is_step(leaf) else leaf.value
        places = {keystr(x.key_path): x.value for x in alike}
        for value in places.values():
            check_shape(f"{leaf.name} of {quoted(leaf.path)}", value, leaf.value)
        is_array = leaf.value.ndim > 0
        if is_array and (len(places) > 1 or not claimed.isdisjoint(places)):
            raise ValueError(
                f"The given state has {leaf.name} of {quoted(leaf.path)} at"
                f" {', '.join(places)}, but tx has it at {keystr(leaf.key_path)}, which"
                " does not tell which belongs to which. Chain the transformations in"
                " tx in the order of the given state."
            )
        claimed.update(places)
        value = alike[0].value if is_array else common_value(places)
        return value.astype(leaf.value.dtype)

    values = [claim(leaf) for leaf in new]
    for leaf in old:
        replaceable = _is_step(leaf) or _is_hyperparameter(leaf)
        if keystr(leaf.key_path) not in claimed and not replaceable:
            raise ValueError(
                f"The given state has {leaf.name}"
                f"{f' of {quoted(leaf.path)}' if leaf.path else ''}, but tx has no"
                " place for it, and it would be lost. Build tx with the same"
                " transformations, or take them out of the given state first."
            )
    return values


def common_value(values: Mapping[str, jax.Array]) -> jax.Array:
    """Copies the one value that all scalars have.

    Traced values cannot be compared: under `jax.jit` the first one is taken. The copy
    is needed because a state that contains an array twice cannot be donated.

    Raises:
      ValueError: known values differ.
    """
    known = {k: x.item() for k, x in values.items() if not isinstance(x, Tracer)}
    if len(set(known.values())) > 1:
        found = ", ".join(f"{x} for {quoted(name)}" for name, x in known.items())
        raise ValueError(
            f"The numbers of steps differ in the given state ({found}), but tx has one"
            " number for all of them. Set them to the right one, with"
            " optax.tree.set(state, count=...)."
        )
    return jnp.array(next(iter(values.values())))


def check_shape(name: str, found: Any, expected: Any) -> None:
    """Raises ValueError unless arrays of the given state fit those of tx."""
    found, expected = (jax.tree.map(jnp.shape, x) for x in (found, expected))
    if found != expected:
        raise ValueError(
            f"The given state has {name} with the shape {found}, but tx expects"
            f" {expected}. Give the state and the parameters of one model."
        )


def _is_step(leaf: StateLeaf) -> bool:
    name = getattr(leaf.state_type, "__name__", "")
    return name in _SCHEDULES or (name in _INJECTED and leaf.field == "count")


def _is_hyperparameter(leaf: StateLeaf) -> bool:
    name = getattr(leaf.state_type, "__name__", "")
    return name in _INJECTED and leaf.field == "hyperparams"
