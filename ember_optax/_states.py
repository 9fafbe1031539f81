"""Flattening of any optimizer state into leaves that know the state around them."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
from jax.tree_util import KeyPath, all_leaves, tree_flatten_with_path

from ember_optax._paths import nearest, normalize


class StateLeaf(NamedTuple):
    """A leaf of an optimizer state."""

    state_type: type | None  # innermost state around it, such as optax.ScaleByAdamState
    field: str  # its field of that state, such as `mu`
    path: str  # its path in the field, such as `embed/embedding`
    key_path: KeyPath  # its path in the whole state
    value: Any

    @property
    def name(self) -> str:
        """The leaf as messages show it."""
        if self.state_type is None:
            return normalize(self.key_path)
        return f"{self.state_type.__name__}.{self.field}"


def flatten_state(
    state: Any, params: Any, stop_at: type | tuple[type, ...] = ()
) -> tuple[list[StateLeaf], Any]:
    """Flattens an optimizer state.

    Args:
      state: state of any optimizer.
      params: the parameters. Named tuples that occur in them are containers, not
        optimizer states.
      stop_at: types of states that count as one leaf.

    Returns:
      The leaves, and the tree structure to unflatten them with.
    """
    containers = set()

    def collect(node: Any) -> bool:
        containers.add(type(node))
        return False

    jax.tree.leaves(params, is_leaf=collect)

    def walk(node: Any, leaf: StateLeaf) -> Iterator[StateLeaf]:
        if isinstance(node, stop_at) or all_leaves([node]):
            yield leaf._replace(value=node)
            return
        is_named_tuple = isinstance(node, tuple) and hasattr(node, "_fields")
        is_state = is_named_tuple and type(node) not in containers
        children, _ = tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
        for keys, child in children:
            key_path = leaf.key_path + keys
            if is_state:
                field = normalize(keys)
                yield from walk(child, StateLeaf(type(node), field, "", key_path, None))
            else:
                path = "/".join(filter(None, (leaf.path, normalize(keys))))
                yield from walk(child, leaf._replace(path=path, key_path=key_path))

    leaves = list(walk(state, StateLeaf(None, "", "", (), None)))
    return leaves, jax.tree.structure(state, is_leaf=lambda x: isinstance(x, stop_at))


def owning_param(path: str, params: Collection[str]) -> str | None:
    """Finds the parameter that a leaf of a state belongs to, if any.

    That is the parameter with the longest path that the leaf's path equals or ends
    with, else the one that it starts with, as where a state has a list for each
    parameter.

    Args:
      path: path of the leaf in its field.
      params: paths of all parameters.
    """
    segments = path.split("/")
    endings = ("/".join(segments[i:]) for i in range(len(segments)))
    found = next((ending for ending in endings if ending in params), None)
    return nearest(path, dict.fromkeys(params)) if found is None else found
