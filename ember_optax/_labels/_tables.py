"""Which parameters of a model are token tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import optax

from ember_optax._labels import _messages, _roles, _words
from ember_optax._paths import by_path, normalize

if TYPE_CHECKING:
    from ember_optax._types import Tree


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
    missing: Literal["error", "body"] = "error",
    is_leaf: Callable[[Any], bool] | None = None,
) -> Tree[str]:
    """Labels each parameter of a model as a token table or as part of the body.

    Token tables have one row or column for each token: input embeddings, LM heads
    (also as [D, V] kernels), value and per-layer embeddings, multi-token-prediction
    and multi-codebook heads. The first rule that applies decides:

    1. `exclude` makes a parameter body, `include` a table.
    2. Not floating point, not two or three axes, or an axis of size 1: body.
    3. A name that says what else the rows are (positions, segments, patches, LoRA
       factors, norms...), or a vision tower or vector quantizer around it: body.
    4. With `vocab_size`, shape decides: an axis of that size is the vocabulary (of
       three axes, the first and longest). The name must agree as well where the size
       is also a width of the model (byte vocabularies), or where the axis is padded: to
       at most the next multiple of 256, and by at most a third.
    5. Without `vocab_size`, the exact name of the parameter or of its module. A bare
       `head` or `output` must also be as long as a table with a clearer name.

    With `embed` and `head`, input tables and output tables get different labels. Value,
    per-layer and n-gram embeddings are input tables; multi-token-prediction and
    codebook heads are output tables. A table that is both is a head: the only table, or
    the main embedding of a model without a head (of several, the decoder's). The name
    decides. Where it says nothing, a [D, V] array is a head. If no head is found so,
    arrays without a clear name are the heads of the embeddings that have one.

    Give `vocab_size` where you can: heads called `Dense_0`, or a `head` on its own,
    cannot be told by name, and the embedding then seems to be the only table.

    Parts of a tree that are masked (`optax.MaskedNode`, inside `optax.masked` or
    another `optax.multi_transform`) have no label, and a masked tree may lack tables.

    Args:
      params: any pytree of arrays, or of anything with `shape` and `dtype`: dict,
        FrozenDict, boxed linen variables, `nnx.State`, Equinox modules, lists. Inside
        `jax.shard_map` shapes are local, so label the parameters outside.
      vocab_size: number of tokens, or several where a model has several vocabularies;
        the padded one where it is padded further than rule 4 allows.
      include: regular expressions, searched in the `/`-joined path, such as
        `"bigram_embed/weight"`: parameters that are tables whatever the rules say.
      exclude: likewise, parameters that are body. Wins over `include`.
      table: label of the tables.
      body: label of everything else.
      embed: label of input tables, instead of `table`. Give `head` as well.
      head: label of output tables. What is excluded or masked still counts: where the
        head is frozen, the embedding keeps its role.
      missing: what happens if an unmasked tree has no table. `"error"` raises;
        `"body"` labels everything as body, which suits LoRA and frozen tables.
      is_leaf: as in `jax.tree.map`, tells which nodes get one label instead of a tree
        of labels. They are tables if an array inside is. For optimizers whose masks act
        on whole wrappers, such as `lambda x: isinstance(x, haliax.NamedArray)`.

    Returns:
      A tree like `params` with a label for each leaf. The function itself is the
      `param_labels` of `optax.multi_transform`; customise it with `functools.partial`.

    Raises:
      ValueError: there are parameters, but no token table among them; an argument is
        invalid; `embed` is given without `head` or the reverse, or two of `embed`,
        `head` and `body` are equal; or, unless the tree is masked, a pattern matches no
        parameter.

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
    _messages.check_missing(missing)
    _messages.check_roles(embed, head, body)
    vocab_sizes = _messages.vocab_sizes(vocab_size)
    leaves = by_path(params)
    masked = _masked(params)
    included = _messages.matches("include", include, leaves, needed=not masked)
    excluded = _messages.matches("exclude", exclude, leaves, needed=not masked)

    shapes = {path: leaf.shape for path, leaf in leaves.items() if _is_float(leaf)}
    candidates = {path: shapes[path] for path in shapes if _may_be(path, shapes[path])}
    named = _named(candidates)
    widths = _widths(vocab_sizes, shapes, named)
    tables = named
    if vocab_sizes:
        tables = _by_shape(candidates, named, vocab_sizes, widths)
        missed = named - tables - included - excluded
        _messages.check_whole({path: shapes[path] for path in missed}, vocab_sizes)
    tables = tables | included
    known = {path: () for path in masked if _is_masked_table(path)}
    known |= {path: getattr(leaves[path], "shape", ()) for path in tables}
    heads = _roles.heads(known, vocab_sizes)
    tables = tables - excluded

    if leaves and not tables and not masked and missing == "error":
        lora = [path for path in leaves if _words.is_lora(path)]
        raise ValueError(
            _messages.no_table_message(leaves, vocab_sizes, widths, lora)
        )
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


def _masked(params: Any) -> list[str]:
    """Returns the paths of what is masked."""

    def is_mask(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_mask)
    return [normalize(key_path) for key_path, node in nodes if is_mask(node)]


def _is_masked_table(path: str) -> bool:
    named = _words.is_table_name(path) or _words.is_bare_head_name(path)
    return named and not _words.is_vetoed(path)


def _is_float(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def _may_be(path: str, shape: tuple[int, ...]) -> bool:
    """Rules 2 and 3: whether a floating-point parameter could be a token table."""
    if not 2 <= len(shape) <= 3 or min(shape) < 2:
        return False
    return not _words.is_vetoed(path)


def _named(candidates: dict[str, tuple[int, ...]]) -> set[str]:
    """Rule 5: the tables among the candidates, by name."""
    named = {path for path in candidates if _words.is_table_name(path)}
    lengths = {max(candidates[path]) for path in named}
    heads = {path for path in candidates if _words.is_bare_head_name(path)}
    return named | {path for path in heads if lengths & set(candidates[path])}


def _by_shape(
    candidates: dict[str, tuple[int, ...]],
    named: set[str],
    vocab_sizes: tuple[int, ...],
    widths: dict[int, str],
) -> set[str]:
    """Rule 4: the tables among the candidates, given the sizes of vocabularies."""
    decisive = set(vocab_sizes) - set(widths)
    return {
        path
        for path, shape in candidates.items()
        if decisive & set(_rows(shape))
        or (path in named and any(_is_padded(shape, size) for size in vocab_sizes))
    }


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the sizes of the axes that can be the vocabulary of an unnamed table."""
    if len(shape) == 2:
        return shape
    return shape[:1] if shape[0] > max(shape[1:]) else ()


def _is_padded(shape: tuple[int, ...], size: int) -> bool:
    """Whether an axis is the vocabulary, as it is or padded."""
    multiple = _messages.PAD_MULTIPLE
    limit = min(multiple * math.ceil(size / multiple), size + size / 3)
    return any(size <= axis <= limit for axis in shape)


def _widths(
    sizes: tuple[int, ...], shapes: dict[str, tuple[int, ...]], named: set[str]
) -> dict[int, str]:
    """Returns the sizes that are also widths, each with a parameter that shows it."""
    found = {size: _width(size, shapes, named) for size in sizes}
    return {size: path for size, path in found.items() if path is not None}


def _width(
    size: int, shapes: dict[str, tuple[int, ...]], named: set[str]
) -> str | None:
    """Returns the path of a parameter that shows the size to be a width of the model.

    It is if it is the size of an axis in an attention, MLP or norm, of two axes of one
    matrix, or of the same matrix in two layers. A list of matrices in one part of the
    model may be a list of tables, except where what one puts out another takes in.
    Several heads are no layers.
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
