"""A byte-level BPE vocabulary, GPT-2's kind, and documents as its tokens."""

import itertools
import re
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
SMALLEST = 257
"""A token for each byte, and the end of text."""

# BPE takes time quadratic in the length of a word, and memory many times a text. So
# words are cut at 256 bytes, and texts where any word would end: before a blank that
# follows something else, or anywhere if there is none for very long.
_LONG_WORD = Regex(".{256}")
_PIECE = re.compile(r".{1,16384}(?:\Z|(?<=\S)(?=[ \n]))|.{1,16384}", re.DOTALL)
_PIECES_AT_ONCE = 32
# The trainer takes a hundred bytes for each byte of words that never come again, such
# as those cut from a line without a space: 2 MB of such pieces are enough for it.
_WITHOUT_SPACES = re.compile(r"\S{256}")
_PIECES_WITHOUT_SPACES = 128


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a vocabulary of at least `SMALLEST` tokens."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    long_words = pre_tokenizers.Split(_LONG_WORD, "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([byte_level, long_words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_to_train_on(documents), trainer)
    return tokenizer


def _to_train_on(documents: Iterable[str]) -> Iterator[str]:
    """Yields all pieces but those after the first ones without spaces."""
    without_spaces = 0
    for piece in itertools.chain.from_iterable(map(_pieces, documents)):
        if _WITHOUT_SPACES.search(piece):
            without_spaces += 1
            if without_spaces > _PIECES_WITHOUT_SPACES:
                continue
        yield piece


def pack(tokenizer: Tokenizer, documents: Iterable[str]) -> np.ndarray:
    """Returns the tokens of all documents in a row, each ending with END_OF_TEXT."""
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    texts = (text for d in documents for text in (*_pieces(d), END_OF_TEXT))
    batches = iter(lambda: list(itertools.islice(texts, _PIECES_AT_ONCE)), [])
    encodings = map(tokenizer.encode_batch_fast, batches)
    return np.concatenate([np.array(e.ids, dtype) for b in encodings for e in b])


def _pieces(document: str) -> Iterator[str]:
    return (match[0] for match in _PIECE.finditer(document))
