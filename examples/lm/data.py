"""Batches of windows from files of token ids."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np

from examples.lm.errors import UserError
from examples.lm.token_files import TokenFile, find, open_file

_THREADS = 8  # hide the latency of a bucket: each one reads a batch ahead

ALL = slice(None)


class Windows:
    """Random access to the windows of all files, numbered from 0 over all of them.

    A window has `sequence_length + 1` tokens of one file. The last token of a window is
    the first one of the next window, so that each token is a target once.
    """

    def __init__(
        self, files: Sequence[TokenFile], sequence_length: int, vocab_size: int
    ):
        self.files = files
        self._length = sequence_length
        self._vocab_size = vocab_size
        counts = [(file.n_tokens - 1) // sequence_length for file in files]
        self._starts = np.cumsum([0, *counts])
        if not len(self):
            raise UserError(
                f"{files[0].path} and {len(files) - 1} more files have no window of"
                f" sequence_length {sequence_length} + 1 tokens: give longer files or"
                " lower --config.sequence_length."
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> np.ndarray:
        """Returns a window as int32[sequence_length + 1].

        Raises:
          UserError: a token id is not in the vocabulary.
        """
        i = int(np.searchsorted(self._starts, number, side="right")) - 1
        start = (number - int(self._starts[i])) * self._length
        tokens = self.files[i].read(start, start + self._length + 1)
        low, high = tokens.min(), tokens.max()
        if low < 0 or high >= self._vocab_size:
            raise UserError(
                f"{self.files[i].path} has the token id {high if low >= 0 else low}"
                f" after token {start:,}, but the vocabulary has {self._vocab_size:,}"
                " ids: give the tokenizer that made the file, or --config.data.dtype if"
                " the file has no header."
            )
        return tokens.astype(np.int32)


def open_source(
    pattern: str, sequence_length: int, vocab_size: int, dtype: str | None = None
) -> Windows:
    """Opens the token files that a pattern names, without reading their tokens.

    Args:
      pattern: paths and globs, separated by commas; local or `gs://`.
      sequence_length: targets in a window.
      vocab_size: number of token ids.
      dtype: type of the ids in files without a header, "uint16" or "uint32". By default
        uint16 if the vocabulary fits.

    Raises:
      UserError: a part of the pattern names no file, a file is empty, truncated or of
        another format, or no file has a window.
    """
    found = [file for part in pattern.split(",") for file in find(part.strip())]
    if len({os.path.realpath(path) for path, _ in found}) < len(found):
        raise UserError(f"data path {pattern!r} names a file twice.")
    raw = np.dtype(dtype or ("uint16" if vocab_size <= 2**16 else "uint32"))
    with ThreadPoolExecutor(32) as pool:  # a request for each file in a bucket
        files = list(pool.map(lambda file: open_file(file[0], file[1], raw), found))
    return Windows(files, sequence_length, vocab_size)


def train_batches(
    sources: Sequence[Windows],
    batch_size: int,
    seed: int,
    weights: Sequence[float] = (),
    rows: slice | np.ndarray = ALL,
) -> grain.DatasetIterator:
    """Returns an endless iterator over the given rows of int32[batch_size, length + 1].

    Each source is shuffled as a whole, in another order in each epoch. The position is
    `get_state()`, one number that is the same for every number of processes.

    Args:
      sources: windows of the same length.
      batch_size: rows of a batch over all processes.
      seed: determines the order.
      weights: shares of the sources; by default their numbers of windows.
      rows: the rows of a batch that this process needs.
    """
    if not all(isinstance(x, int | float) and 0 < x < np.inf for x in weights):
        raise UserError(
            f"config.data.weights is {weights}, but must be positive numbers."
        )
    starts = np.cumsum([0, *map(len, sources)])
    # Grain permutes numbers of windows. Only the rows of this process are read.
    parts = [
        grain.MapDataset.range(int(start), int(stop)).seed(seed + i).shuffle().repeat()
        for i, (start, stop) in enumerate(itertools.pairwise(starts))
    ]
    order = parts[0]
    if len(parts) > 1:
        order = grain.MapDataset.mix(parts, [*(weights or map(len, sources))])

    def read(numbers: np.ndarray) -> np.ndarray:
        numbers = numbers[rows]
        which = np.searchsorted(starts, numbers, side="right") - 1
        pairs = zip(which, numbers - starts[which], strict=True)
        return np.stack([sources[i][n] for i, n in pairs])

    batches = order.batch(batch_size, drop_remainder=True).map(read)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
    return iter(batches.to_iter_dataset(options))


def validation_batches(
    source: Windows, batch_size: int, n_batches: int, rows: slice | np.ndarray = ALL
) -> list[np.ndarray]:
    """Returns rows of the same `n_batches` every time, drawn from all files.

    Files with fewer windows give fewer batches; a single batch repeats windows.
    """
    batches = train_batches([source], batch_size, seed=0, rows=rows)
    n_batches = min(n_batches, max(1, len(source) // batch_size))
    return [next(batches) for _ in range(n_batches)]


def fingerprint(sources: Sequence[Windows]) -> dict[str, object]:
    """Makes a fingerprint of the text of a run, independent of where it is stored."""
    files = [file for source in sources for file in source.files]
    digest = hashlib.sha256("".join(file.digest for file in files).encode())
    return {
        "files": len(files),
        "tokens": sum(file.n_tokens for file in files),
        "digest": digest.hexdigest()[:16],
    }
