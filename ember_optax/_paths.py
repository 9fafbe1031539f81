"""Trees of parameters as an optimizer meets them: names of leaves, and placeholders."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import jax
from jax.tree_util import (
    DictKey,
    FlattenedIndexKey,
    GetAttrKey,
    KeyPath,
    SequenceKey,
    tree_leaves_with_path,
)

T = TypeVar("T")


def normalize(path: KeyPath) -> str:
    """Returns the `/`-joined name of the leaf at a JAX key path.

    The same parameter gets the same name in every form in which an optimizer meets
    it. Flax NNX shows `embed/embedding` with a trailing `.value` at init and without
    at update, and linen boxes add the same suffix. Haiku keeps slashes inside one key
    and marks constructors with `~`. Flat dictionaries have dotted keys
    (`embed.embedding`) or tuples.

    Args:
      path: key path as given by `jax.tree_util.tree_flatten_with_path`.

    Returns:
      The name, such as `decoder/embed/embedding`; empty for a bare array.
    """
    if path and path[-1] == GetAttrKey("value"):
        path = path[:-1]
    segments = [s for key in path for s in _segments(_entry(key))]
    return "/".join(s for s in segments if s not in ("", "~"))


def by_path(tree: Any) -> dict[str, Any]:
    """Returns every leaf of a pytree by its normalised name, in the tree's order.

    Raises:
      ValueError: two leaves have the same name.
    """
    leaves: dict[str, Any] = {}
    keys: dict[str, str] = {}  # of what is in `leaves`, as key paths that JAX prints
    for key_path, leaf in tree_leaves_with_path(tree):
        path, shown = normalize(key_path), jax.tree_util.keystr(key_path)
        key = to_key(path)
        if key in keys:
            raise ValueError(
                f"Two leaves are called {quoted(path)}: {keys[key]} and {shown}. Names"
                " drop `.value` and `~` and split keys at `/` and `.`, but the"
                " optimizer state needs a name for each. Rename one of them."
            )
        leaves[path] = leaf
        keys[key] = shown
    return leaves


def to_key(path: str) -> str:
    """Returns the key of a table in an optimizer state: its path with `:` for `/`.

    Checkpointers join the names of a tree with `/` or `.` and split them again, and
    rules of sharding search for `embed_tokens/embedding` in them.
    """
    return path.replace("/", ":")


def keyed(by_path: Mapping[str, T]) -> dict[str, T]:
    """Returns the same with keys of a state for paths."""
    return {to_key(path): value for path, value in by_path.items()}


def from_key(key: str) -> str:
    """Returns a path as messages show it, of the key of a table in a state."""
    return key.replace(":", "/")


def quoted(path: str) -> str:
    """Returns a path as messages show it; a bare array has none."""
    return repr(path) if path else "the bare array"


def listed(paths: Iterable[str], none: str = "no table") -> str:
    """Returns paths as messages show them: sorted, the first ten."""
    names = sorted(map(quoted, paths))
    more = [f"{len(names) - 10} more"] if len(names) > 10 else []
    return ", ".join(names[:10] + more) or none


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


def _segments(entry: Any) -> list[str]:
    if isinstance(entry, tuple):
        return [s for part in entry for s in _segments(part)]
    return re.split(r"[/.]", str(entry))
