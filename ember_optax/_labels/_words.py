"""What the name of a parameter says of its rows."""

import re

# Names are compared word by word: `TokenEmbedder_0` and `token_embedder` both read as
# (token, embedder), and `posterior` does not contain `pos`.

_VETOES = {
    "adapter": "a factor of another parameter",
    "pos posembed posemb position positions positional wpe rope": "place in a sequence",
    "rel relpos relative distance": "distance in a sequence",
    "seg segment segments type types tokentype": "segment: `token_type_embeddings`",
    "patch patches pixel pixels": "piece of an image",
    "time timestep timesteps step steps sigma": "time or noise level",
    "avg ema": "running average, a buffer of a codebook",
    "cls register mask latent latents query queries prompt prefix": "learned vectors"
    " that are no tokens of the text",
    "class classes classifier label labels score pooler": "category of an example",
    "speaker task action": "category of an example",
    "bias biases": "one number for each token, or for each distance",
    "norm layernorm rmsnorm batchnorm groupnorm gamma": "normalisation",
    "scale scales zero zeros zeropoint": "quantisation or normalisation",
}
"""Words that rule a token table out, by what the rows stand for instead."""

_VETO_WORDS = {word for words in _VETOES for word in words.split()}

_NAMES_CHILD = set(
    "pos position positions positional relative segment prompt prefix".split()
)
"""A part named so also says what the rows of a bare `embedding` inside it are."""

_TOWER = set("vision visual image images img video vit siglip pixel patch".split())
"""A model part named so looks at images: nothing below it is a token table..."""

_LANGUAGE = set("language lm llm text txt token tokens word words".split())
"""...unless it, or a part inside it, speaks of language (`visual_bert/word_emb`)."""

_INSIDE = set(
    "lora dora router routing gating gate codebook codebooks quantize quantizer"
    " quantizers vq rvq vqvae vqgan vqmodel".split()
)
"""Inside a part named so nothing is a token table: LoRA factors, choice of experts,
vector quantisers with their buffers..."""

_WHOLE = set("model transformer lm llm".split())
"""...unless the name is that of a whole model (`lora_model`)."""

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

_OBJECT = set(
    "layer layers table tables matrix linear weight weights var lookup lut luts list"
    " bag bags".split()
)
"""Qualifiers that do not tell what the rows are."""

_EMBED_QUALIFIER = _OBJECT | set(
    "token tokens tok word words subword vocab vocabulary char character byte text"
    " image code codec codebook codebooks audio speech phoneme residue amino acid"
    " nucleotide kmer ngram bigram trigram hash multi head per value values user item"
    " entity id ids in input inputs out output source src target tgt encoder decoder"
    " depformer shared tied reverse scaled".split()
)
"""What else may stand in the name of an input table."""

_EMBED_BARE = ({"wte"}, {"shared"})
"""Names of an input table that stand alone: GPT-2's and T5's."""

_LINEAR_ARRAY = set("weight weights w".split())
_SIDE = set("encoder decoder audio speech".split())
_TOKEN = set("token tokens tok word words vocab".split())
"""An embedding named by one of the sides needs a token too if it may be linear."""

_HEAD = set("logit logits logitdense unembed unembedding unembedder lmhead".split())
"""A language-model head: one of these words, or one of each of the next pairs."""

_HEAD_NOUN = set("head heads loss".split())
_HEAD_QUALIFIER = set(
    "lm mlm mtp vocab vocabulary token tokens codebook codebooks".split()
)
_PROJECTION = set("proj projection projector".split())
_PROJECTION_QUALIFIER = set("lm vocab vocabulary".split())
_HEAD_FILLER = set("out output to decoder generator linear dense weight w".split())
"""What else may stand in the name of a head."""

_HEAD_INNER = ({"head"}, {"heads"}, {"decoder"}, {"linear"})
"""What a head calls its matrix where it is more than that (`lm_head/decoder`)."""

_BARE_HEAD = ({"head"}, {"output"}, {"output", "layer"}, {"output", "projection"})
"""Names of a head that other parts of a model have as well."""

_OUT = (
    _HEAD | _HEAD_NOUN | set("out output outputs softmax generator predictions".split())
)
"""What a module that predicts tokens is called, or a part around it."""

_OUT_LINEAR = set("linear linears dense fc proj projection projector".split())
"""Of a linear layer, which may also read one-hot tokens."""

_OUT_EMBED = set("out output tied reverse softmax linear".split())
"""In the name of an embedding: it predicts tokens, or does both."""

_EXTRA = set(
    "per value values multi gram ngram bigram trigram hash audio speech code codec"
    " entity relation".split()
)
"""An embedding beside the main one, which no head is tied to."""

_DECODED = set("decoder tgt target shared".split())
"""Of several embeddings, the one that a head is tied to is called or placed so."""

_BLOCK = set(
    "attn attention att mlp ffn feedforward feed experts moe mixer ssm lstm gru ih hh"
    " norm layernorm rmsnorm ln".split()
)
"""Inside a part named so, the size of an axis is a width of the model."""

_WRAPPER = set(
    "pytree module base_layer base_module modules_to_save original_module default"
    " parametrizations original array".split()
)
"""Segments of a path that only wrap what they hold: Equinox, PEFT, PyTorch, Haliax."""


def is_vetoed(path: str) -> bool:
    """Whether the name says that the parameter is no token table."""
    segments = _segments(path)
    words = [_words(segment) for segment in segments]
    in_tower = any(
        w & _TOWER and not set().union(*words[i:]) & _LANGUAGE
        for i, w in enumerate(words)
    )
    own = _own_segments(segments)
    return (
        in_tower
        or any(_is_inside(w) for w in words)
        or any(_words(s) & _VETO_WORDS or s in _DIT for s in own)
    )


def is_table_name(path: str) -> bool:
    """Whether the parameter, or the module that it is the array of, is named so."""
    *_, outer, module, leaf = ["", "", "", *_segments(path)]
    words = _words(module)
    if leaf in _LINEAR_ARRAY and words & _SIDE and not words & _TOKEN:
        # Equinox and Haiku call the array of a linear layer so as well.
        return words in _HEAD_INNER and _is_head(_words(outer))
    if leaf not in _ARRAY:
        return _is_embed(_words(leaf)) or _is_head(_words(leaf))
    if _is_head_of(words, _words(outer)):
        return True
    if leaf == "kernel":
        # The kernel of an `embedding` is a projection or a convolution.
        return False
    if _is_embed(words):
        return True
    # The array may carry the name itself, below a module that says nothing of it.
    return _is_embed(_words(leaf)) and not words & (_EMBED | _BLOCK)


def is_bare_head_name(path: str) -> bool:
    """Whether it is called as heads are, but as other parts of a model are too."""
    *_, module, leaf = ["", "", *_segments(path)]
    name = module if leaf in _ARRAY else leaf
    return _words(name) in _BARE_HEAD and not is_in_block(path)


def is_output(path: str) -> bool | None:
    """Whether the name of a table says that it predicts tokens, or that it reads them.

    None where the name says neither.
    """
    *parents, leaf = _segments(path) or [""]
    named = [*parents[::-1], leaf] if leaf in _ARRAY else [leaf, *parents[::-1]]
    if leaf == "weight" and _words(named[0]) == {"decoder"}:
        return True  # beside the `encoder` of PyTorch's word-level models
    for words in map(_words, named):
        if words & _EMBED or words in _EMBED_BARE:
            return bool(words & _OUT_EMBED)
        if words & _OUT or (words & _OUT_LINEAR and leaf == "weight"):
            return True
    return None


def is_extra(path: str) -> bool:
    """Whether the name of an embedding says that it is not the main one."""
    names = [_words(segment) for segment in _segments(path)]
    return is_vetoed(path) or any(w & _EMBED and w & _EXTRA for w in names)


def is_decoded(path: str) -> bool:
    """Whether an embedding is on the side of a model that puts tokens out."""
    return any(_words(segment) & _DECODED for segment in _segments(path))


def is_in_block(path: str) -> bool:
    """Whether the parameter is part of an attention, MLP or norm."""
    words = [_words(segment) for segment in _segments(path)]
    return any(w & _BLOCK and not w & _HEAD for w in words)


def is_below_head(path: str) -> bool:
    """Whether the parameter, or a part that it belongs to, is called a head."""
    return any(_words(segment) & _HEAD_NOUN for segment in _segments(path))


def is_lora(path: str) -> bool:
    """Whether the parameter is a LoRA factor."""
    return any(_words(segment) & {"lora", "dora"} for segment in _segments(path))


def enclosing_part(path: str) -> str:
    """Returns the path of the part that the module of this array is in.

    For `layers/0/up/kernel` that is the layer; for a list of modules (`heads/0/kernel`,
    `Dense_0/kernel`) the part that has the list.
    """
    path = "/".join(s for s in path.split("/") if s not in _WRAPPER)
    for suffix in (r"(/\d+)+", f"/({'|'.join(_ARRAY)})", r"(/\d+)+", r"/?[^/]*"):
        path = re.sub(f"{suffix}$", "", path, count=1)
    return path


def _is_inside(words: set[str]) -> bool:
    # A codebook's rows are no tokens, but `codebook_embed` and `codebook_head` are
    # the tables of a model that reads and predicts its codes.
    other = words & _WHOLE or _is_embed(words) or _is_head(words)
    return bool(words & _INSIDE) and not other


def _is_head_of(words: set[str], outer: set[str]) -> bool:
    """Whether a module is a head, given the words of the part that it is in."""
    if words in _HEAD_INNER:
        return _is_head(outer) or outer == {"shared", "head"}
    if words in ({"logit"}, {"logits"}) and outer & (_HEAD_NOUN | _VETO_WORDS):
        return _is_head(outer)  # not the logits of some other head
    return _is_head(words)


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


def _segments(path: str) -> list[str]:
    """The segments of a path that are names: no list index, no wrapper."""
    return [s for s in path.split("/") if not s.isdigit() and s not in _WRAPPER]


def _words(segment: str) -> set[str]:
    return {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", segment)}


def _own_segments(segments: list[str]) -> list[str]:
    """The leaf, the module that it is the array of, and embedding modules around."""
    *parents, leaf = segments or [""]
    own = [leaf]
    for parent in reversed(parents):
        words = _words(parent)
        is_module = own == [leaf] and leaf in _ARRAY
        names_child = words & _NAMES_CHILD and not words & (_LANGUAGE | _WHOLE)
        if not (is_module or words & _EMBED or (own[-1] in _ARRAY and names_child)):
            break
        own.append(parent)
        if words & _EMBED_QUALIFIER - _OBJECT and _is_embed(words):
            break  # it says itself what it is, whatever it is part of
    return own
