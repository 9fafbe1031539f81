"""What the leaves of an optimizer state are, whatever optimizer it belongs to."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
from jax.tree_util import KeyPath, tree_flatten_with_path

from ember_optax._paths import normalize


class StateLeaf(NamedTuple):
    """A leaf of an optimizer state."""

    part: type | None  # the innermost state around it, such as optax.ScaleByAdamState
    field: str  # of that state, such as `mu`
    path: str  # within the field, such as `embed/embedding`
    place: KeyPath  # in the whole state
    value: Any

    @property
    def name(self) -> str:
        """The leaf as messages show it."""
        if self.part is None:
            return normalize(self.place)
        return f"{self.part.__name__}.{self.field}"


def leaves_of(
    state: Any, params: Any, whole: type | tuple[type, ...] = ()
) -> list[StateLeaf]:
    """Returns all leaves of an optimizer state, in its order.

    Args:
      state: of any optimizer.
      params: the parameters; named tuples in them are no states.
      whole: types of states that count as one leaf.
    """
    kinds = {type(node) for node in _nodes(params) if _is_named_tuple(node)}

    def walk(
        node: Any, part: type | None, field: str, path: KeyPath, place: KeyPath
    ) -> Iterator[StateLeaf]:
        children, _ = tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
        is_leaf = len(children) == 1 and children[0][1] is node
        if isinstance(node, whole) or is_leaf:
            yield StateLeaf(part, field, normalize(path), place, node)
            return
        for keys, child in children:
            if _is_named_tuple(node) and type(node) not in kinds:
                name = normalize(keys)
                yield from walk(child, type(node), name, (), place + keys)
            else:
                yield from walk(child, part, field, path + keys, place + keys)

    return list(walk(state, None, "", (), ()))


def owner(path: str, params: Collection[str]) -> str | None:
    """Returns the path of the parameter that a leaf of a state belongs to, if any.

    Args:
      path: of the leaf within its field: that of the parameter, perhaps with more
        before it or after it.
      params: paths of all parameters.
    """
    segments = path.split("/") if path else []
    n = len(segments)
    runs = sorted(
        ((i, j) for i in range(n) for j in range(i + 1, n + 1)),
        key=lambda run: (run[0] - run[1], -run[1]),
    )
    names = ("/".join(segments[i:j]) for i, j in runs)
    found = next((name for name in names if name in params), None)
    return "" if found is None and "" in params else found


def _is_named_tuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _nodes(tree: Any) -> Iterator[Any]:
    yield tree
    children = jax.tree.leaves(tree, is_leaf=lambda x: x is not tree)
    if not (len(children) == 1 and children[0] is tree):
        for child in children:
            yield from _nodes(child)
