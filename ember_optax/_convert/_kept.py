"""What an optimizer state keeps when its Adam becomes Ember, or the other way round."""

from collections.abc import Mapping, Sequence

import jax
from jax.tree_util import keystr

from ember_optax._convert._parts import PARTS, common_value
from ember_optax._paths import quoted
from ember_optax._states import StateLeaf

# By name, because two of these classes have no public name in Optax.
_SCHEDULES = {"ScaleByScheduleState", "WrappedScheduleState"}
_INJECTED = {"InjectHyperparamsState", "InjectStatefulHyperparamsState"}


class Kept:
    """The leaves of a state but those of Adam and Ember, for another state to take.

    Two leaves are alike if they have the same path in the same field of the same kind
    of state, wherever that state is.
    """

    def __init__(self, leaves: Sequence[StateLeaf], counts: Mapping[str, jax.Array]):
        """Sorts the leaves of the given state.

        Args:
          leaves: of the given state, those of `PARTS` whole.
          counts: steps that Adam or Ember have taken, by the path of the parameter.
        """
        self._left = [leaf for leaf in leaves if not isinstance(leaf.value, PARTS)]
        self._all = tuple(self._left)
        schedules = {
            keystr(leaf.place): leaf.value for leaf in self._all if _is_step(leaf)
        }
        self._steps = schedules or counts

    def take(self, new: StateLeaf) -> jax.Array:
        """Returns what a leaf of the new state becomes.

        Raises:
          ValueError: the given state has several values for it, or another shape.
        """
        if _is_hyperparameter(new):
            return new.value
        alike = [leaf for leaf in self._all if _are_alike(leaf, new)]
        alike = [leaf for leaf in alike if leaf.place == new.place] or alike
        if not alike:
            return common_value(self._steps) if _is_step(new) else new.value
        for leaf in alike:
            if leaf.value.shape != new.value.shape:
                raise ValueError(
                    f"The given state has a {leaf.name} of {quoted(leaf.path)} with the"
                    f" shape {leaf.value.shape}, but tx expects {new.value.shape}. Give"
                    " the state and the parameters of one model."
                )
        if len(alike) > 1 and alike[0].value.ndim:
            raise ValueError(
                f"The given state has a {new.name} of {quoted(new.path)} in"
                f" {len(alike)} places, none of which is that of tx,"
                f" {keystr(new.place)}. Chain the optimizers in the order of the given"
                " state."
            )
        self._left = [leaf for leaf in self._left if leaf not in alike]
        if len(alike) == 1 and alike[0].value.ndim:
            return alike[0].value.astype(new.value.dtype)
        by_place = {keystr(leaf.place): leaf.value for leaf in alike}
        return common_value(by_place).astype(new.value.dtype)

    def check_all_taken(self) -> None:
        """Raises ValueError for what has no place in the new state and would be lost.

        Schedules may end, and hyperparameters are always those of the new optimizer.
        """
        for leaf in self._left:
            if not (_is_step(leaf) or _is_hyperparameter(leaf)):
                what = f"{leaf.name} of {quoted(leaf.path)}" if leaf.path else leaf.name
                raise ValueError(
                    f"The given state has a {what}, but that of tx has no place for it,"
                    " and it would be lost. Build tx with the same transformations, or"
                    " take them out of the given state first."
                )


def _are_alike(a: StateLeaf, b: StateLeaf) -> bool:
    return (a.part, a.field, a.path) == (b.part, b.field, b.path)


def _is_step(leaf: StateLeaf) -> bool:
    """Whether a leaf is the step of a schedule."""
    is_count = _part(leaf) in _INJECTED and leaf.field == "count"
    return is_count or _part(leaf) in _SCHEDULES


def _is_hyperparameter(leaf: StateLeaf) -> bool:
    return _part(leaf) in _INJECTED and leaf.field == "hyperparams"


def _part(leaf: StateLeaf) -> str:
    return leaf.part.__name__ if leaf.part else ""
