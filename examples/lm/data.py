"""From documents to batches of tokens.

Documents are split into train and validation, a byte-level BPE vocabulary is trained on
the train documents, and the tokens of each side are packed into one long array with an
end-of-text token after each document. Batches are windows of that array.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import grain
import numpy as np
from tokenizers import Tokenizer

from examples.lm import cache
from examples.lm.corpus import read_documents
from examples.lm.errors import UserError
from examples.lm.vocabulary import pack, train_tokenizer

_CACHE_VERSION = 2
# A window is a slice of an array in memory: threads would only cost.
_NO_THREADS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)

T = TypeVar("T")

ALL = slice(None)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Packed token ids of both sides of the split, which iterating gives."""

    train: np.ndarray  # uint16 or uint32
    validation: np.ndarray
    tokenizer: str = ""  # what the ids stand for, as JSON

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.train, self.validation))


def load(
    path: str | None = None,
    vocab_size: int = 4096,
    validation_fraction: float = 0.05,
    split_seed: int = 0,
    cache_dir: str = ".cache",
) -> Tokens:
    """Returns the tokens of a corpus, from the cache where it has been seen before.

    Args:
      path: what to read, see :func:`examples.lm.corpus.read_documents`.
      vocab_size: size of the BPE vocabulary; a tiny corpus may not fill it.
      validation_fraction: share of the documents to validate on.
      split_seed: which documents those are.
      cache_dir: where vocabularies and tokens are kept, under a key of the corpus and
        of these settings.
    """
    documents = read_documents(path)

    def make() -> cache.Entry:
        train, validation = split(documents, validation_fraction, split_seed)
        tokenizer = train_tokenizer(train, vocab_size)
        sides = pack(tokenizer, train), pack(tokenizer, validation)
        return cache.Entry(*sides, tokenizer.to_str())

    settings = [_CACHE_VERSION, vocab_size, validation_fraction, split_seed]
    return Tokens(*cache.get(Path(cache_dir, _key(documents, settings)), make))


def load_tokenizer(**settings: object) -> Tokenizer:
    """Returns the tokenizer of :func:`load`, which takes the same arguments."""
    return Tokenizer.from_str(load(**settings).tokenizer)  # pyright: ignore[reportArgumentType]


def split(
    documents: list[T], validation_fraction: float, seed: int
) -> tuple[list[T], list[T]]:
    """Returns shuffled (train, validation) documents, at least one of each."""
    order = np.random.default_rng(seed).permutation(len(documents))
    n = round(validation_fraction * len(documents))
    n = min(max(n, 1), len(documents) - 1)
    return [documents[i] for i in order[n:]], [documents[i] for i in order[:n]]


def train_batches(
    tokens: np.ndarray,
    sequence_length: int,
    batch_size: int,
    seed: int,
    rows: slice | np.ndarray = ALL,
) -> grain.DatasetIterator:
    """Returns an endless iterator over the given rows of batches.

    A batch is int32[batch_size, sequence_length + 1]: inputs are all but the last token
    of a window, targets all but the first. Every epoch has another order. The position
    is `get_state()` of the iterator, the same for every number of processes.

    Raises:
      UserError: the tokens are too few for a window, or for the windows of a batch.
    """
    n_windows = _n_windows(tokens, sequence_length)
    if batch_size > n_windows:
        raise UserError(
            f"batch_size is {batch_size}, but the text to train on has only"
            f" {n_windows} windows of sequence_length {sequence_length}: give more"
            " text, or lower one of the two."
        )
    order = grain.MapDataset.range(n_windows).seed(seed)
    batches = order.shuffle().repeat().batch(batch_size, drop_remainder=True)
    batches = batches.map(lambda ids: _windows(tokens, sequence_length, ids[rows]))
    return iter(batches.to_iter_dataset(_NO_THREADS))


def validation_batches(
    tokens: np.ndarray,
    sequence_length: int,
    batch_size: int,
    n_batches: int,
    rows: slice | np.ndarray = ALL,
) -> list[np.ndarray]:
    """Returns rows of the same `n_batches` every time, drawn from all documents.

    A side too small for that many batches has fewer of them; one too small for a batch
    repeats itself.
    """
    order = grain.MapDataset.range(_n_windows(tokens, sequence_length)).seed(0)
    n_batches = min(n_batches, max(1, len(order) // batch_size))
    ids = np.resize(list(order.shuffle()), (n_batches, batch_size))
    return [_windows(tokens, sequence_length, batch[rows]) for batch in ids]


def _n_windows(tokens: np.ndarray, sequence_length: int) -> int:
    n_windows = (len(tokens) - 1) // sequence_length
    if n_windows < 1:
        raise UserError(
            f"One side of the corpus has {len(tokens)} tokens, too few for a window of"
            f" {sequence_length} + 1: give more text or a smaller sequence_length."
        )
    return n_windows


def _windows(tokens: np.ndarray, sequence_length: int, ids: np.ndarray) -> np.ndarray:
    """Cuts windows: consecutive ones share a token, target then input."""
    starts = ids[:, None] * sequence_length
    return tokens[starts + np.arange(sequence_length + 1)].astype(np.int32)


def _key(documents: list[str], settings: list) -> str:
    digest = hashlib.sha256(json.dumps(settings).encode())
    for document in documents:
        content = document.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:16]
