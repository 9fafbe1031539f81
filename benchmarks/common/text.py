"""Text of the studies: documents, a vocabulary trained on them, and batches.

The same text, settings and versions give the same batches as the runs on record.
"""

import glob
import gzip
import hashlib
import itertools
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
CACHE = Path(".cache/text")
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
# BPE takes time quadratic in the length of a word, and memory many times a text. Split
# words at 256 bytes, and texts where a word ends: before a blank that follows something
# else, or anywhere if there is none for long.
_LONG_WORD = Regex(".{256}")
_PIECE = re.compile(r".{1,16384}(?:\Z|(?<=\S)(?=[ \n]))|.{1,16384}", re.DOTALL)
_PIECES_AT_ONCE = 32
# The trainer takes a hundred bytes for each byte of words that never come again.
_WITHOUT_SPACES = re.compile(r"\S{256}")
_PIECES_WITHOUT_SPACES = 128
# A window is a slice of an in-memory array: prefetch threads would only add overhead.
_NO_THREADS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


class Tokens(NamedTuple):
    """Packed token ids of both sides of the split."""

    train: np.ndarray  # uint16 or uint32
    validation: np.ndarray


def load(paths: Sequence[str | None] = (None,), vocab_size: int = 4096) -> Tokens:
    """Returns the tokens of a text, from the cache if it has been seen before.

    Args:
      paths: globs of files; None is the source of the standard library.
      vocab_size: size of the BPE vocabulary.
    """
    documents = [text for path in paths for text in read_documents(path)]
    digest = hashlib.sha256("\0".join([str(vocab_size), *documents]).encode())
    file = CACHE / f"{digest.hexdigest()[:16]}.npz"
    if not file.exists():
        train, validation = split(documents)
        tokenizer = train_tokenizer(train, vocab_size)
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{hash(tokenizer)}.npz")
        np.savez(scratch, pack(tokenizer, train), pack(tokenizer, validation))
        scratch.replace(file)
    with np.load(file) as arrays:
        return Tokens(arrays["arr_0"], arrays["arr_1"])


def read_documents(path: str | None = None) -> list[str]:
    """Returns the text of each file in a fixed order, without duplicates."""
    if path is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = [
            file
            for file in root.rglob("*.py")
            if not _NOT_LIBRARY & set(file.relative_to(root).parts)
        ]
    else:
        files = [Path(p) for p in glob.glob(path, recursive=True)]
    texts = [_read(file) for file in sorted(files) if file.is_file()]
    return list(dict.fromkeys(text for text in texts if text.strip()))


def _read(file: Path) -> str:
    content = file.read_bytes()
    if file.name.endswith(".gz"):
        content = gzip.decompress(content)
    text = content.decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def split(documents: list[str]) -> tuple[list[str], list[str]]:
    """Returns shuffled documents to train on, and a twentieth to validate on."""
    order = np.random.default_rng(0).permutation(len(documents))
    n = min(max(round(0.05 * len(documents)), 1), len(documents) - 1)
    return [documents[i] for i in order[n:]], [documents[i] for i in order[:n]]


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE vocabulary."""
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
    """Yields all pieces, of those without spaces only the first ones."""
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


def train_batches(
    tokens: np.ndarray, sequence_length: int, batch_size: int, seed: int
) -> grain.DatasetIterator:
    """Returns an endless iterator over int32[batch_size, sequence_length + 1]."""
    n_windows = (len(tokens) - 1) // sequence_length
    order = grain.MapDataset.range(n_windows).seed(seed)
    batches = order.shuffle().repeat().batch(batch_size, drop_remainder=True)
    batches = batches.map(lambda ids: _windows(tokens, sequence_length, ids))
    return iter(batches.to_iter_dataset(_NO_THREADS))


def validation_batches(
    tokens: np.ndarray, sequence_length: int, batch_size: int, n_batches: int
) -> list[np.ndarray]:
    """Returns the same batches every time, drawn from all documents."""
    order = grain.MapDataset.range((len(tokens) - 1) // sequence_length).seed(0)
    n_batches = min(n_batches, max(1, len(order) // batch_size))
    numbers = np.array(list(order.shuffle()))
    return [
        _windows(tokens, sequence_length, batch)
        for batch in np.resize(numbers, (n_batches, batch_size))
    ]


def _windows(tokens: np.ndarray, sequence_length: int, ids: np.ndarray) -> np.ndarray:
    starts = ids[:, None] * sequence_length
    return tokens[starts + np.arange(sequence_length + 1)].astype(np.int32)
