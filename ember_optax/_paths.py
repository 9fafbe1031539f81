"""Trees of parameters as an optimizer meets them: names of leaves, and placeholders."""

from collections.abc import Collection
from typing import Any

import jax
from jax.tree_util import (
    DictKey,
    FlattenedIndexKey,
    GetAttrKey,
    KeyPath,
    SequenceKey,
    tree_leaves_with_path,
)


def normalize(path: KeyPath) -> str:
    """Returns the `/`-joined name of the leaf at a JAX key path.

    The same parameter gets the same name in every form in which an optimizer meets
    it: Flax NNX shows `embed/embedding` with a trailing `.value` at init and without
    at update, linen boxes add the same suffix, and Haiku keeps slashes inside one key
    and marks constructors with `~`.

    Args:
      path: key path as given by `jax.tree_util.tree_flatten_with_path`.

    Returns:
      The name, such as `decoder/embed/embedding`; empty for a bare array.
    """
    if path and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    segments = [s for key in path for s in str(_entry(key)).split("/")]
    return "/".join(s for s in segments if s not in ("", "~"))


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns (normalised name, leaf) for every leaf of a pytree, in its order."""
    return [(normalize(path), leaf) for path, leaf in tree_leaves_with_path(tree)]


def quoted(path: str) -> str:
    """Returns a path as messages show it; a bare array has none."""
    return repr(path) if path else "the bare array"


def is_placeholder(params: Any) -> bool:
    """Whether `optax.tree.map_params` is asking which parts mirror the parameters.

    It calls `init` with an opaque tree of one node and no leaves.
    """
    structure = jax.tree.structure(params)
    opaque = structure.num_nodes == 1 and structure.num_leaves == 0
    return opaque and params is not None and not isinstance(params, Collection)


def _entry(key: Any) -> Any:
    match key:
        case DictKey(key=entry) | FlattenedIndexKey(key=entry):
            return entry
        case SequenceKey(idx=entry):
            return entry
        case GetAttrKey(name=entry):
            return entry
        case _:
            return key
