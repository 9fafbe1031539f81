"""What the name of a parameter says of its rows."""

import re

# Names are compared word by word: `TokenEmbedder_0` and `token_embedder` both read as
# (token, embedder), and `posterior` does not contain `pos`.

_VETOES = {
    "adapter": "a factor of another parameter",
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
    "bias biases": "one number for each token, or for each distance",
    "norm layernorm rmsnorm batchnorm groupnorm gamma": "normalisation",
    "scale scales zero zeros zeropoint": "quantisation or normalisation",
}
"""Words that rule a token table out, by what the rows stand for instead."""

_VETO_WORDS = {word for words in _VETOES for word in words.split()}

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

_BLOCK = set(
    "attn attention mlp ffn feedforward experts moe norm layernorm rmsnorm ln".split()
)
"""Inside a part named so, the size of an axis is a width of the model."""


def is_vetoed(path: str) -> bool:
    """Whether the name says that the parameter is no token table."""
    segments = _segments(path)
    words = [_words(segment) for segment in segments]
    if any((w & _TOWER and not w & _LANGUAGE) or w & _INSIDE for w in words):
        return True
    # A codebook's rows are no tokens, but a `codebook_head` predicts them.
    own = [s for s in _own_segments(segments) if not _is_head(_words(s))]
    return any(_words(s) & _VETO_WORDS or s in _DIT for s in own)


def is_table_name(path: str) -> bool:
    """Whether the parameter, or the module that it is the array of, is named so."""
    *_, module, leaf = ["", "", *_segments(path)]
    words = _words(module)
    if leaf in _LINEAR_ARRAY and words & _SIDE and not words & _TOKEN:
        # Equinox and Haiku call the array of a linear layer so as well.
        return False
    if leaf not in _ARRAY:
        return _is_embed(_words(leaf)) or _is_head(_words(leaf))
    if leaf == "kernel":
        # The kernel of an `embedding` is a projection or a convolution.
        return _is_head(words)
    if _is_embed(words) or _is_head(words):
        return True
    # The array may carry the name itself, below a module that says nothing of it.
    return _is_embed(_words(leaf)) and not words & (_EMBED | _BLOCK)


def is_in_block(path: str) -> bool:
    """Whether the parameter is part of an attention, MLP or norm."""
    words = [_words(segment) for segment in _segments(path)]
    return any(w & _BLOCK and not w & _HEAD for w in words)


def is_below_head(path: str) -> bool:
    """Whether the parameter, or a part that it belongs to, is called a head."""
    return any(_words(segment) & _HEAD_NOUN for segment in _segments(path))


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
