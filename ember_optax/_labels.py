"""Which parameters of a model are token tables."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ember_optax import _label_words
from ember_optax._paths import by_path, normalize, quoted

_PAD_MULTIPLE = 256
"""A vocabulary may be padded up to the next multiple of this."""


def label_token_tables(
    params: Any,
    *,
    vocab_size: int | Iterable[int] | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    table: str = "table",
    body: str = "body",
) -> Any:
    """Labels each parameter of a model as a token table or as part of the body.

    Token tables have one row or column for each token: input embeddings, LM heads
    (also as [D, V] kernels), value and per-layer embeddings, multi-token-prediction
    and multi-codebook heads. The first rule that applies decides:

    1. `exclude` makes a parameter body, `include` a table.
    2. Not floating point, not two or three axes, or an axis of size 1: body.
    3. A name that says what else the rows are (positions, segments, patches, LoRA
       factors, norms...), or a vision tower around it: body.
    4. With `vocab_size`, shape decides: an axis of that size is the vocabulary (the
       first axis of three). Where the size is also a width of the model (byte
       vocabularies), or the axis is padded to a multiple of 256, the name must agree.
    5. Without `vocab_size`, the exact name of the parameter or of its module.

    Give `vocab_size` where you can: heads called `output`, `head` or `Dense_0` cannot
    be told by name.

    Args:
      params: any pytree of arrays, or of anything with `shape` and `dtype`: dict,
        FrozenDict, boxed linen variables, `nnx.State`, Equinox modules, lists.
      vocab_size: number of tokens, or several where a model has several vocabularies;
        the padded one where that is above the next multiple of 256.
      include: regular expressions, searched in the `/`-joined path, such as
        `"bigram_embed/weight"`: parameters that are tables whatever the rules say.
      exclude: likewise, parameters that are body. Wins over `include`.
      table: label of the tables.
      body: label of everything else.

    Returns:
      A tree like `params` with a label for each leaf. The function itself is the
      `param_labels` of `optax.multi_transform`; customise it with `functools.partial`.

    Raises:
      ValueError: there are parameters, but no token table among them.

    Examples:
      >>> import jax.numpy as jnp, pprint, ember_optax
      >>> params = {"wte": {"embedding": jnp.ones((8, 2))},
      ...           "wpe": {"embedding": jnp.ones((4, 2))},
      ...           "head": {"kernel": jnp.ones((2, 8))}}
      >>> pprint.pp(ember_optax.label_token_tables(params, vocab_size=8), width=60)
      {'head': {'kernel': 'table'},
       'wpe': {'embedding': 'body'},
       'wte': {'embedding': 'table'}}
    """
    leaves = list(by_path(params).items())
    vocab_sizes = _as_tuple(vocab_size)
    candidates = [(path, leaf.shape) for path, leaf in leaves if _may_be(path, leaf)]
    named = {path for path, _ in candidates if _label_words.is_table_name(path)}
    if vocab_sizes:
        widths = {size for size in vocab_sizes if _is_width(size, leaves, named)}
        decisive = set(vocab_sizes) - widths
        tables = {
            path
            for path, shape in candidates
            if decisive & set(shape if len(shape) == 2 else shape[:1])
            or (path in named and _has_padded_vocab(shape, vocab_sizes))
        }
    else:
        tables = named

    def label(key_path: Any, leaf: Any) -> str:
        del leaf
        path = normalize(key_path)
        if _matches(exclude, path):
            return body
        return table if path in tables or _matches(include, path) else body

    labels = jax.tree_util.tree_map_with_path(label, params)
    if leaves and table not in jax.tree.leaves(labels):
        raise ValueError(_no_table_message(leaves, vocab_sizes))
    return labels


def _may_be(path: str, leaf: Any) -> bool:
    """Rules 2 and 3: whether the parameter could be a token table at all."""
    if not _is_floating(leaf) or not 2 <= len(leaf.shape) <= 3 or min(leaf.shape) < 2:
        return False
    return not _label_words.is_vetoed(path)


def _is_width(size: int, leaves: list[tuple[str, Any]], named: set[str]) -> bool:
    """Whether a vocabulary size also occurs as a width of the model's own layers.

    It does if it is the size of an axis in an attention, MLP or norm, of two axes of
    one matrix, or of the same matrix in two layers; several heads are no layers.
    """
    matches = [
        (path, leaf.shape)
        for path, leaf in leaves
        if path not in named and _is_floating(leaf) and size in leaf.shape
    ]
    matrices = [(path, shape) for path, shape in matches if len(shape) > 1]
    layers = Counter(
        re.sub(r"\d+", "#", path)
        for path, _ in matrices
        if not _label_words.is_below_head(path)
    )
    return (
        any(_label_words.is_in_block(path) for path, _ in matches)
        or any(shape.count(size) > 1 for _, shape in matrices)
        or any(count > 1 for count in layers.values())
    )


def _has_padded_vocab(shape: tuple[int, ...], vocab_sizes: tuple[int, ...]) -> bool:
    return any(
        size <= axis <= _PAD_MULTIPLE * math.ceil(size / _PAD_MULTIPLE)
        for axis in shape
        for size in vocab_sizes
    )


def _is_floating(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def _matches(patterns: str | Sequence[str], path: str) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(re.search(pattern, path) for pattern in patterns)


def _as_tuple(sizes: int | Iterable[int] | None) -> tuple[int, ...]:
    if sizes is None:
        return ()
    return tuple(map(int, sizes)) if isinstance(sizes, Iterable) else (int(sizes),)


def _no_table_message(
    leaves: list[tuple[str, Any]], vocab_sizes: tuple[int, ...]
) -> str:
    by_size = sorted(leaves, key=lambda x: -math.prod(getattr(x[1], "shape", ())))
    largest = ", ".join(
        f"{quoted(path)} {getattr(leaf, 'shape', ())}" for path, leaf in by_size[:3]
    )
    expected, size = "", "the number of tokens"
    if vocab_sizes:
        expected = f"of {vocab_sizes} tokens "
        size = f"the padded size where it is above the next multiple of {_PAD_MULTIPLE}"
    return (
        f"No token table {expected}was found among {len(leaves)} parameters; the"
        f" largest are {largest}. Name the tables with include=[...], regular"
        f" expressions on these paths, or pass vocab_size=, {size}."
    )
