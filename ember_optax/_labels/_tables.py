"""The rules that find the token tables of a model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ember_optax._labels import _messages, _roles, _words
from ember_optax._paths import by_path, masked_paths

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def label_token_tables(
    params: Any,
    *,
    vocab_size: int | Iterable[int] | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    table: str = "table",
    body: str = "body",
    embed: str | None = None,
    head: str | None = None,
    on_missing: Literal["raise", "ignore"] = "raise",
    is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
    """Labels each parameter of a model as a token table or as part of the body.

    A token table has one row or column for each token: an input embedding, an LM head
    (also as a [D, V] kernel), a value or per-layer embedding, a head that predicts
    several tokens or codebooks. The first rule that applies decides:

    1. `exclude` makes a parameter body, `include` makes it a table.
    2. Body: not floating point, not two or three axes, or an axis of size 1.
    3. Body: the name says that the rows are something else (positions, segments,
       patches, LoRA factors, norms...), or it is in a vision tower or a quantizer.
    4. With `vocab_size`, the shape decides: one axis has that size (of three axes, the
       first and longest). The name must agree if the size is also a width of the model
       (byte vocabularies), or if the axis is padded. Padding is up to the next multiple
       of 256 and by at most a third.
    5. Without `vocab_size`, the name of the parameter or of its module decides. A
       parameter called just `head` or `output` must also be as long as a table with a
       clearer name.

    Pass `vocab_size` if you can, because names do not tell everything. If the name of a
    parameter is unknown but its axes are those of a table, that is an error, unless
    `vocab_size` is the exact size of the table or the parameter is inside an attention
    or MLP block.

    `embed` and `head` give input and output tables different labels. Value, per-layer
    and n-gram embeddings are input tables. A table that is both is a head: the only
    table, or the main embedding of a model without a head (of several embeddings, the
    decoder's). The name decides first, then the layout: a [D, V] array is a head. If
    that finds no head, tables without a clear name are the heads of the embeddings that
    have one.

    Masked parts of a tree (`optax.MaskedNode`, inside `optax.masked` or another
    `optax.multi_transform`) have no label, and a masked tree may lack tables.

    Args:
      params: pytree of arrays, or of anything with `shape` and `dtype`: dict,
        FrozenDict, boxed linen variables, `nnx.State`, Equinox modules, lists. Label
        parameters outside `jax.shard_map`, because shapes inside are local.
      vocab_size: number of tokens, or several if the model has several vocabularies.
        Pass the padded size if the padding exceeds rule 4.
      include: regular expressions, searched in the `/`-joined path, such as
        `"bigram_embed/weight"`: these parameters are tables whatever the rules say.
      exclude: regular expressions of parameters that are body. Wins over `include`.
      table: label of the tables.
      body: label of everything else.
      embed: label of input tables, instead of `table`. Requires `head`.
      head: label of output tables. A head that is excluded or masked still counts, so
        the embedding keeps its role while the head is frozen.
      on_missing: `"raise"` raises if an unmasked tree has no table. `"ignore"` labels
        everything as body, for LoRA and frozen tables.
      is_leaf: as in `jax.tree.map`, selects nodes that get one label instead of a tree
        of labels, for optimizers whose masks act on whole wrappers such as
        `haliax.NamedArray`. A node is a table if an array inside it is one.

    Returns:
      A tree like `params` with a label for each leaf. Pass the function itself as
      `param_labels` of `optax.multi_transform`, with options by `functools.partial`.

    Raises:
      ValueError: no token table is found; a parameter may be a table but is not named
        like one; a pattern matches no parameter of an unmasked tree; an argument is
        invalid; only one of `embed` and `head` is given, or two of `embed`, `head` and
        `body` are equal.

    Examples:
      >>> import collections, jax.numpy as jnp, pprint, ember_optax
      >>> params = {"wte": {"embedding": jnp.ones((8, 2))},
      ...           "wpe": {"embedding": jnp.ones((4, 2))},
      ...           "head": {"kernel": jnp.ones((2, 8))}}
      >>> pprint.pp(ember_optax.label_token_tables(params, vocab_size=8), width=60)
      {'head': {'kernel': 'table'},
       'wpe': {'embedding': 'body'},
       'wte': {'embedding': 'table'}}
      >>> ember_optax.label_token_tables(params, embed="embed", head="head")["head"]
      {'kernel': 'head'}
      >>> Wrapped = collections.namedtuple("Wrapped", "array")
      >>> params = {"wte": Wrapped(jnp.ones((8, 2)))}
      >>> ember_optax.label_token_tables(params)
      {'wte': Wrapped(array='table')}
      >>> ember_optax.label_token_tables(
      ...     params, is_leaf=lambda node: isinstance(node, Wrapped))
      {'wte': 'table'}
    """
    _messages.check_options(on_missing, embed, head, body)
    vocab_sizes = _messages.vocab_sizes(vocab_size)
    leaves = by_path(params)
    masked = masked_paths(params)
    included = _messages.matches("include", include, leaves, needed=not masked)
    excluded = _messages.matches("exclude", exclude, leaves, needed=not masked)

    shapes = {path: leaf.shape for path, leaf in leaves.items() if _is_float(leaf)}
    candidates = {k: v for k, v in shapes.items() if _is_candidate(k, v)}
    named = _find_by_name(candidates)
    witnesses = {n: _find_width_witness(n, shapes, named) for n in vocab_sizes}
    widths = {n: path for n, path in witnesses.items() if path is not None}
    found = named
    if vocab_sizes:
        found = _find_by_shape(candidates, named, vocab_sizes, widths)
        lost = named - found - included - excluded
        _messages.check_not_sharded({path: shapes[path] for path in lost}, vocab_sizes)
    found = found | included
    tables = found - excluded

    if leaves and not tables and not masked and on_missing == "raise":
        raise ValueError(_messages.no_table(leaves, vocab_sizes, widths))
    unsure = [
        k for k in shapes if k in tables and not set(vocab_sizes) & set(shapes[k])
    ]
    rest = [k for k in candidates if k not in found | excluded]
    _check_none_forgotten(unsure, rest, shapes, vocab_sizes)

    known = {path: () for path in masked if _is_masked_table(path)}
    known |= {path: getattr(leaves[path], "shape", ()) for path in found}
    heads = _roles.heads(known, vocab_sizes)
    if embed is None:
        embed = head = table
    nodes, structure = jax.tree.flatten(params, is_leaf=is_leaf)
    paths = iter(leaves)
    labels = []
    for node in nodes:
        inside = tables.intersection([next(paths) for _ in jax.tree.leaves(node)])
        role = embed if heads.isdisjoint(inside) else head
        labels.append(role if inside else body)
    return structure.unflatten(labels)


def _is_masked_table(path: str) -> bool:
    named = _words.is_table_name(path) or _words.is_bare_head_name(path)
    return named and not _words.is_vetoed(path)


def _is_float(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def _is_candidate(path: str, shape: Shape) -> bool:
    """Applies rules 2 and 3 to a floating-point parameter."""
    return 2 <= len(shape) <= 3 and min(shape) > 1 and not _words.is_vetoed(path)


def _find_by_name(candidates: Shapes) -> set[str]:
    """Applies rule 5."""
    named = {path for path in candidates if _words.is_table_name(path)}
    lengths = {max(candidates[path]) for path in named}
    bare_heads = filter(_words.is_bare_head_name, candidates)
    return named | {path for path in bare_heads if lengths & set(candidates[path])}


def _find_by_shape(
    candidates: Shapes,
    named: set[str],
    vocab_sizes: tuple[int, ...],
    widths: dict[int, str],
) -> set[str]:
    """Applies rule 4."""
    decisive = set(vocab_sizes) - set(widths)
    return {
        path
        for path, shape in candidates.items()
        if decisive & set(_vocab_axis_sizes(shape))
        or (path in named and any(_has_padded_axis(shape, n) for n in vocab_sizes))
    }


def _vocab_axis_sizes(shape: Shape) -> Shape:
    """Returns the sizes of the axes that can be the vocabulary of an unnamed table."""
    if len(shape) == 2:
        return shape
    return shape[:1] if shape[0] > max(shape[1:]) else ()


def _has_padded_axis(shape: Shape, size: int) -> bool:
    multiple = _messages.PAD_MULTIPLE
    limit = min(multiple * math.ceil(size / multiple), size + size / 3)
    return any(size <= axis <= limit for axis in shape)


def _find_width_witness(size: int, shapes: Shapes, named: set[str]) -> str | None:
    """Returns the path of a parameter that shows the size to be a width of the model.

    That is an axis in an attention, MLP or norm, two axes of one matrix, or the same
    matrix in two layers. Matrices in one list may be tables, unless one outputs what
    another reads. Repeated heads do not count as repeated layers.
    """
    seen: dict[str, tuple[str, int]] = {}
    for path, shape in shapes.items():
        if path in named or size not in shape:
            continue
        if _words.is_in_block(path) or shape.count(size) > 1:
            return path
        if len(shape) == 1 or _words.is_below_head(path):
            continue
        place = _words.enclosing_part(path), shape.index(size)
        if seen.setdefault(re.sub(r"_?\d+", "", path), place) != place:
            return path
    return None


def _check_none_forgotten(
    tables: list[str], rest: list[str], shapes: Shapes, vocab_sizes: tuple[int, ...]
) -> None:
    """Raises ValueError if a parameter in `rest` may be a table with an unknown name.

    `tables` are those whose size `vocab_sizes` does not confirm.
    """
    outside_blocks = [path for path in rest if not _words.is_in_block(path)]
    for table in tables:
        similar = [k for k in outside_blocks if _same_axes(shapes[table], shapes[k])]
        if similar:
            raise ValueError(
                _messages.forgotten_table(table, similar, shapes, vocab_sizes)
            )


def _same_axes(table: Shape, other: Shape) -> bool:
    """Whether two axes agree, the longest of both included, in any order.

    A third axis may differ, such as that of several codebooks.
    """
    common = Counter(table) & Counter(other)
    return common.total() >= 2 and max(table) == max(other)
