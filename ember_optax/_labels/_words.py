"""Names that tell token tables from other parameters.

Names are compared word by word: `TokenEmbedder_0` and `token_embedder` both read as
(token, embedder), and `posterior` does not contain `pos`. The lists are short on
purpose. Without `vocab_size`, an unknown name is an error if a table has the same axes.
"""

import re

_VETOES = set(
    # place or distance in a sequence, segment, piece of an image, time
    "pos position positions positional wpe rel relative segment segments seg type types"
    " patch patches time timestep"
    # category (DiT: `y_embedder`), learned vectors that are not tokens of the text
    " class classifier label y prompt prefix"
    # normalisation, quantisation
    " bias norm scale scales zeros".split()
)
"""Words for rows that are not tokens, in the name of a parameter or just around it."""

_EXCLUDED_PARENTS = set(
    "router gate codebook codebooks quantize quantizer vq vqmodel vision visual image"
    " img".split()
)
"""Routers, quantizers with their buffers, vision towers: no token table is inside..."""

_LANGUAGE = set("language lm llm text token tokens word words".split())
"""...unless the path has such a word there or further inside, as `visual/word_emb`."""

_ARRAY = set("embedding embeddings embed weight weights w kernel table".split())
"""Names that frameworks give to an array: the name of the module decides instead."""

_EMBED = set("embed embeds embedder embedders embedding embeddings emb embd".split())
"""Words for an input table."""

_EMBED_QUALIFIERS = set(
    "token tokens tok word words vocab char byte text code codec codebook value per"
    " bigram trigram ngram hash entity user item id in input out output encoder"
    " depformer shared reverse src tgt layer layers table tables linear var"
    " luts".split()
)
"""Words that may stand next to them. Any other word makes the name unknown."""

_EMBED_NAMES = ("wte", "shared")
"""Names of an input table without such a word: GPT-2's and T5's."""

_HEAD_NAMES = set(
    "lm_head generator_lm_head mlm_head mtp_head mtp_heads codebook_head codebook_heads"
    " codebooks_head vocab_head vocab_proj vocab_projector lm_loss logits to_logits"
    " logits_dense logitdense unembed unembedding embed_out".split()
)
"""Names of a language-model head, as `_snake_case` writes them."""

_HEAD_MATRICES = ("decoder", "linear")
"""Names of the matrix of a head that has more parameters (`lm_head/decoder`)."""

_BARE_HEAD_NAMES = ("head", "output", "output_layer", "output_projection")
"""Names of a head that other parts of a model have as well."""

_OUTPUT = set(
    "head heads loss logit logits out output outputs softmax generator"
    " predictions".split()
)
"""Words for a module that predicts tokens, or for a part around it."""

_LINEAR = set("linear linears dense fc proj".split())
"""Words for a PyTorch layer that predicts tokens if its `weight` is a table."""

_OUTPUT_EMBED = set("out output reverse softmax".split())
"""Words in the name of an embedding that predicts tokens as well."""

_AUXILIARY = set(
    "per value values bigram trigram ngram gram multi hash audio speech code codec"
    " entity relation".split()
)
"""Words for an embedding that no head is tied to."""

_DECODER = set("decoder tgt target shared".split())
"""Words for the embedding that a head is tied to, if there are several."""

_BLOCK = set(
    "attn attention mlp ffn feedforward feed experts moe mixer lstm gru ih hh norm"
    " layernorm ln".split()
)
"""Words for a part in which the size of an axis is a width of the model."""

_WRAPPERS = set(
    "pytree module base_layer modules_to_save original_module default array".split()
)
"""Segments that only wrap a parameter: Equinox, DDP, PEFT, Haliax."""


def is_vetoed(path: str) -> bool:
    """Whether the name says that the parameter is not a token table."""
    if is_lora(path):
        return True
    for depth, name in enumerate(reversed(_segments(path))):
        words = _words(name)
        if depth < 3 and words & _VETOES and not words & {"lm", "llm", "model"}:
            return True
        if words & _LANGUAGE:
            return False
        if words & _EXCLUDED_PARENTS and not (_is_embed(name) or _is_head(name)):
            return True
    return False


def is_table_name(path: str) -> bool:
    """Whether the parameter, or the module that it is the array of, is named so."""
    *_, outer, module, leaf = ["", "", "", *_segments(path)]
    if leaf not in _ARRAY:
        return _is_embed(leaf) or _is_head(leaf)
    if module in _HEAD_MATRICES:
        return _is_head(outer)
    if _snake_case(module) == "logits" and "head" in _words(outer):
        return _is_head(outer)  # other heads have logits as well
    if _is_head(module):
        return True
    if leaf == "kernel":
        return False  # of an `embedding`, that is a projection or a convolution
    if _is_embed(module):
        return True
    # The array may carry the name itself, below a module that says nothing about it.
    return _is_embed(leaf) and not _words(module) & (_EMBED | _BLOCK)


def is_bare_head_name(path: str) -> bool:
    """Whether the name is one that heads and other parts of a model have."""
    *_, module, leaf = ["", "", *_segments(path)]
    name = module if leaf in _ARRAY else leaf
    return _snake_case(name) in _BARE_HEAD_NAMES and not is_in_block(path)


def is_output(path: str) -> bool | None:
    """Whether the name of a table says that it predicts tokens; None if unclear."""
    *parents, leaf = _segments(path) or [""]
    names = [*parents[::-1], leaf] if leaf in _ARRAY else [leaf, *parents[::-1]]
    if leaf == "weight" and names[0] == "decoder":
        return True  # PyTorch's word-level models have `encoder` and `decoder`
    for name in names:
        words = _words(name)
        if words & _EMBED or name in _EMBED_NAMES:
            return bool(words & _OUTPUT_EMBED)
        if words & _OUTPUT or _is_head(name) or (words & _LINEAR and leaf == "weight"):
            return True
    return None


def is_auxiliary(path: str) -> bool:
    """Whether the name says that this is not the main embedding."""
    names = map(_words, _segments(path))
    return is_vetoed(path) or any(w & _EMBED and w & _AUXILIARY for w in names)


def is_in_decoder(path: str) -> bool:
    return any(_words(name) & _DECODER for name in _segments(path))


def is_in_block(path: str) -> bool:
    """Whether the parameter is part of an attention, MLP or norm."""
    names = map(_words, _segments(path))
    return any(words & _BLOCK and "logits" not in words for words in names)


def is_below_head(path: str) -> bool:
    return any(_words(name) & {"head", "heads", "loss"} for name in _segments(path))


def is_lora(path: str) -> bool:
    names = map(_words, _segments(path))
    return any(w & {"lora", "dora"} and "model" not in w for w in names)


def enclosing_part(path: str) -> str:
    """Returns the path of the part that contains the module of this array.

    For `layers/0/up/kernel` that is `layers/0`. For a list of modules
    (`heads/0/kernel`, `Dense_0/kernel`) it is the part that contains the list.
    """
    path = "/".join(s for s in re.split("[/.]", path) if s not in _WRAPPERS)
    for suffix in (r"(/\d+)+", f"/({'|'.join(_ARRAY)})", r"(/\d+)+", r"/?[^/]*"):
        path = re.sub(f"{suffix}$", "", path, count=1)
    return path


def _is_embed(name: str) -> bool:
    words = _words(name)
    known = bool(words & _EMBED) and words <= _EMBED | _EMBED_QUALIFIERS
    return known or name in _EMBED_NAMES


def _is_head(name: str) -> bool:
    return _snake_case(name) in _HEAD_NAMES


def _segments(path: str) -> list[str]:
    """Returns the segments of a path that are names: no list index, no wrapper."""
    segments = re.split("[/.]", path)  # flat dictionaries have dotted keys
    return [s for s in segments if not s.isdigit() and s not in _WRAPPERS]


def _snake_case(name: str) -> str:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return "_".join(words).lower()


def _words(name: str) -> set[str]:
    return set(_snake_case(name).split("_"))
