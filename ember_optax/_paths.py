"""Names of the leaves of a pytree, and Optax's placeholder for the parameters."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import optax
from jax.tree_util import DictKey, GetAttrKey, KeyPath, keystr, tree_leaves_with_path


def normalize(path: KeyPath) -> str:
    """Formats a JAX key path as a `/`-joined name.

    A parameter has the same name in every form in which an optimizer meets it: Flax NNX
    shows `embed/embedding` with a trailing `.value` at init and without it at update,
    and linen boxes add the same suffix. A tuple as a dictionary key counts as a path.

    Args:
      path: key path as given by `jax.tree_util.tree_flatten_with_path`.

    Returns:
      The name, such as `decoder/embed/embedding`; empty for a bare array.
    """
    if path and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    segments = []
    for key in path:
        if isinstance(key, DictKey) and isinstance(key.key, tuple):
            segments += map(str, key.key)
        else:
            segments.append(keystr((key,), simple=True))
    return "/".join(segments)


def by_path(tree: Any) -> dict[str, Any]:
    """Maps the name of every leaf of a pytree to the leaf, in the tree's order.

    Raises:
      ValueError: two leaves have the same name.
    """
    leaves: dict[str, Any] = {}
    shown: dict[str, str] = {}  # state key of each leaf to its path as JAX prints it
    for key_path, leaf in tree_leaves_with_path(tree):
        path = normalize(key_path)
        key = state_key(path)
        if key in shown:
            raise ValueError(
                f"Two leaves have the name {quoted(path)}: {shown[key]} and"
                f" {keystr(key_path)}. The optimizer state needs one name for each:"
                " rename one of them."
            )
        leaves[path] = leaf
        shown[key] = keystr(key_path)
    return leaves


def masked_paths(tree: Any) -> list[str]:
    """Lists the names of the nodes that `optax.masked` has taken out of a tree."""

    def is_mask(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    nodes = tree_leaves_with_path(tree, is_leaf=is_mask)
    return [normalize(key_path) for key_path, node in nodes if is_mask(node)]


def state_key(path: str) -> str:
    """Converts a path to the key of a table in an optimizer state.

    `:` replaces `/` and `::` replaces `.`. Checkpointers join the names of a tree with
    `/` or `.` and split them again, and sharding rules search for names such as
    `embed_tokens/embedding` in them.
    """
    return path.replace("/", ":").replace(".", "::")


def path_from_key(key: str) -> str:
    """Converts the key of a table in a state back to its path."""
    return key.replace("::", ".").replace(":", "/")


def nearest(path: str, given: Mapping[str, Any]) -> str | None:
    """Finds the longest prefix of a path that is a key of `given`.

    A tree of options may be a prefix of the parameters: an option in the place of a
    subtree is that of all its leaves.
    """
    segments = path.split("/")
    prefixes = ("/".join(segments[:n]) for n in range(len(segments), -1, -1))
    return next((prefix for prefix in prefixes if prefix in given), None)


def quoted(path: str) -> str:
    """Formats a path for a message; a bare array has none."""
    return repr(path) if path else "the bare array"


def listed(paths: Iterable[str], none: str = "no table") -> str:
    """Formats paths for a message: sorted, the first ten; `none` if there are none."""
    names = sorted(map(quoted, paths))
    more = [f"{len(names) - 10} more"] if len(names) > 10 else []
    return ", ".join(names[:10] + more) or none


def is_placeholder(params: Any) -> bool:
    """Tells whether `optax.tree.map_params` asks which parts mirror the parameters.

    It calls `init` with an opaque tree of one node and no leaves.
    """
    structure = jax.tree.structure(params)
    opaque = structure.num_nodes == 1 and structure.num_leaves == 0
    return opaque and params is not None and not isinstance(params, Collection)
