"""Which parameters of a model are token tables."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ember_optax._paths import named_leaves, normalize

# Names are compared word by word: `TokenEmbedder_0` and `token_embedder` both read as
# (token, embedder), and `posterior` does not contain `pos`.

_VETOES = {
    "lora dora adapter": "a factor of another parameter",
    "pos posembed posemb position positions positional wpe rope": "place in a sequence",
    "rel relpos relative": "distance in a sequence",
    "seg segment segments type types": "segment, as in `token_type_embeddings`",
    "patch patches pixel pixels": "piece of an image",
    "time timestep timesteps step steps sigma": "time or noise level",
    "codebook codebooks vq quantizer quantizers": "vector quantiser",
    "cls register mask latent latents query queries prompt prefix": "learned vectors"
    " that are no tokens of the text",
    "class classes classifier label labels score pooler": "category of an example",
    "speaker task action": "category of an example",
    "router routing gating": "choice of an expert",
    "bias biases": "one number for each token, or for each distance",
    "norm layernorm rmsnorm batchnorm groupnorm gamma": "normalisation",
    "scale scales zero zeros zeropoint": "quantisation or normalisation",
}
"""Words that rule a token table out, by what the rows stand for instead."""

_TOWER = set("vision visual image images img video vit siglip pixel patch".split())
"""A model part named so looks at images: nothing below it is a token table..."""

_LANGUAGE = set("language lm llm text token tokens".split())
"""...unless the same name also speaks of language (`vision_language_model`)."""

_INSIDE = set("lora dora router routing gating gate".split())
"""Inside a part named so nothing is a token table: LoRA factors, choice of experts."""

_DIT = ("x_embedder", "y_embedder", "t_embedder")
"""What diffusion transformers call the embedders of patches, labels and time."""

_ARRAY = set(
    "embedding embeddings embed emb weight weights w kernel table param var".split()
)
"""What frameworks call the array of a module: the module's name then decides."""

_EMBED = set(
    "embed embeds embedder embedders embedding embeddings emb embs embd".split()
)
"""An input table: one of these words, and no others than these and the next."""

_EMBED_QUALIFIER = set(
    "token tokens tok word words subword vocab vocabulary char character byte text code"
    " codec audio speech ngram bigram trigram hash multi head per layer value values"
    " in input inputs out output source src target tgt encoder decoder shared tied"
    " reverse scaled lookup layer table matrix linear weight weights var".split()
)
_OBJECT = set("layer table matrix linear weight weights var lookup".split())
"""Qualifiers that do not tell what the rows are."""

_EMBED_BARE = ({"wte"}, {"shared"})
"""Names of an input table that stand alone: GPT-2's and T5's."""

_LINEAR_ARRAY = set("weight weights w".split())
_SIDE = set("encoder decoder audio speech".split())
_TOKEN = set("token tokens tok word words vocab".split())
"""An embedding named by one of the sides needs a token too if it may be linear."""

_HEAD = set("logit logits logitdense unembed unembedding unembedder lmhead".split())
"""A language-model head: one of these words, or one of each of the next pairs."""

_HEAD_NOUN = set("head heads".split())
_HEAD_QUALIFIER = set("lm mtp vocab vocabulary token tokens codebook codebooks".split())
_PROJECTION = set("proj projection projector".split())
_PROJECTION_QUALIFIER = set("lm vocab vocabulary".split())
_HEAD_FILLER = set("out output to decoder generator linear dense weight w".split())
"""What else may stand in the name of a head."""

_VETO_WORDS = {word for words in _VETOES for word in words.split()}

_BLOCK = set(
    "attn attention mlp ffn feedforward experts moe norm layernorm rmsnorm ln".split()
)
"""Inside a part named so, the size of an axis is a width of the model."""

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
      vocab_size: number of tokens, or several where a model has several vocabularies.
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
    leaves = named_leaves(params)
    vocab_sizes = _as_tuple(vocab_size)
    candidates = [(path, leaf.shape) for path, leaf in leaves if _may_be(path, leaf)]
    named = {path for path, _ in candidates if _is_named(path)}
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
    segments = _segments(path)
    words = [_words(segment) for segment in segments]
    if any((w & _TOWER and not w & _LANGUAGE) or w & _INSIDE for w in words):
        return False
    # A codebook's rows are no tokens, but a `codebook_head` predicts them.
    own = [s for s in _own_segments(segments) if not _is_head(_words(s))]
    return not any(_words(s) & _VETO_WORDS or s in _DIT for s in own)


def _is_named(path: str) -> bool:
    """Rule 5: whether the parameter, or the module that it is the array of, says so."""
    *_, module, leaf = ["", "", *_segments(path)]
    words = _words(module)
    if leaf in _LINEAR_ARRAY and words & _SIDE and not words & _TOKEN:
        # Equinox and Haiku call the array of a linear layer so as well.
        return False
    if leaf not in _ARRAY:
        return _is_embed(_words(leaf)) or _is_head(_words(leaf))
    if leaf == "kernel":
        # The kernel of an `embedding` is a projection or a convolution.
        return _is_head(_words(module))
    if _is_embed(_words(module)) or _is_head(_words(module)):
        return True
    # The array may carry the name itself, below a module that says nothing of it.
    return _is_embed(_words(leaf)) and not _words(module) & (_EMBED | _BLOCK)


def _is_embed(words: set[str]) -> bool:
    if words in _EMBED_BARE:
        return True
    return bool(words & _EMBED) and words <= _EMBED | _EMBED_QUALIFIER


def _is_head(words: set[str]) -> bool:
    if words & {"out", "output"} and _is_embed(words):
        return True
    nouns = _HEAD_NOUN | _PROJECTION
    named = (
        words & _HEAD
        or (words & _HEAD_NOUN and words & _HEAD_QUALIFIER)
        or (words & _PROJECTION and words & _PROJECTION_QUALIFIER)
    )
    return bool(named) and words <= _HEAD | nouns | _HEAD_QUALIFIER | _HEAD_FILLER


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
        if not any(_words(s) & _HEAD_NOUN for s in _segments(path))
    )
    return (
        any(_is_block(_words(s)) for path, _ in matches for s in _segments(path))
        or any(shape.count(size) > 1 for _, shape in matrices)
        or any(count > 1 for count in layers.values())
    )


def _is_block(words: set[str]) -> bool:
    return bool(words & _BLOCK) and not words & _HEAD


def _has_padded_vocab(shape: tuple[int, ...], vocab_sizes: tuple[int, ...]) -> bool:
    return any(
        size <= axis <= _PAD_MULTIPLE * math.ceil(size / _PAD_MULTIPLE)
        for axis in shape
        for size in vocab_sizes
    )


def _is_floating(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def _segments(path: str) -> list[str]:
    """The segments of a path that are names: no list index, no Equinox wrapper."""
    return [s for s in path.split("/") if not s.isdigit() and s != "pytree"]


def _words(segment: str) -> set[str]:
    return {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", segment)}


def _own_segments(segments: list[str]) -> list[str]:
    """The leaf, the module that it is the array of, and embedding modules around."""
    *parents, leaf = segments or [""]
    own = [leaf]
    for parent in reversed(parents):
        is_module = own == [leaf] and leaf in _ARRAY
        if not is_module and not _words(parent) & _EMBED:
            break
        own.append(parent)
        if _words(parent) & _EMBED_QUALIFIER - _OBJECT and _is_embed(_words(parent)):
            break  # it says itself what it is, whatever it is part of
    return own


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
    largest = ", ".join(f"{p!r} {getattr(x, 'shape', ())}" for p, x in by_size[:3])
    expected = f"of {vocab_sizes} tokens " if vocab_sizes else ""
    return (
        f"No token table {expected}was found among {len(leaves)} parameters; the"
        f" largest are {largest}. Name the tables with include=[...], regular"
        " expressions on these paths, or pass vocab_size=, the number of tokens."
    )
