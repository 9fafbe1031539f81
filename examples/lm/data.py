"""Batches of windows from files of token ids, on a disk or in a bucket.

Formats: `.bin` of llm.c and modded-nanogpt (header of 256 int32), `.bin` of nanoGPT and
`.npy` of OLMo (no header), and files of `numpy.save`.
"""

import hashlib
import io
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import fsspec
import grain
import numpy as np

from examples.lm.errors import UserError

_HEADER_BYTES = 1024
_LLMC = {20240520: "<u2", 20240801: "<u4"}  # magic numbers: GPT-2's and Llama 3's
_THREADS = 8  # hide the latency of a bucket: each one reads a batch ahead

ALL = slice(None)


class TokenFile(NamedTuple):
    """A file of token ids that follow a header."""

    path: str
    dtype: np.dtype
    offset: int  # bytes of the header
    n_tokens: int
    digest: str  # of the file's name, size and first bytes

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns a range of token ids in the file's dtype.

        Local files are read, not mapped: mapped pages would count as this process's
        memory, and a file that is truncated meanwhile would kill it.
        """
        begin, end = (self.offset + i * self.dtype.itemsize for i in (start, stop))
        try:
            if "://" in self.path:
                fs, name = fsspec.url_to_fs(self.path)
                tokens = np.frombuffer(fs.cat_file(name, begin, end), self.dtype)
            else:
                tokens = np.fromfile(self.path, self.dtype, stop - start, offset=begin)
        except Exception as error:  # from any storage
            raise UserError(f"{self.path} cannot be read: {error!r}") from error
        if len(tokens) != stop - start:
            raise UserError(f"{self.path} has been truncated since the run started.")
        return tokens


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
        counts = [max(file.n_tokens - 1, 0) // sequence_length for file in files]
        self._ends = np.cumsum(counts)
        if not len(self):
            raise UserError(
                f"{files[0].path} and {len(files) - 1} more files have no window of"
                f" sequence_length {sequence_length} + 1 tokens: give longer files or"
                " lower --config.sequence_length."
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> np.ndarray:
        """Returns a window as int32[sequence_length + 1].

        Raises:
          UserError: a token id is not in the vocabulary.
        """
        i = int(np.searchsorted(self._ends, number, side="right"))
        start = (number - (int(self._ends[i - 1]) if i else 0)) * self._length
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
    found = [file for part in pattern.split(",") for file in _find(part.strip())]
    if len(dict(found)) < len(found):
        raise UserError(f"data path {pattern!r} names a file twice.")
    raw = np.dtype(dtype or ("uint16" if vocab_size <= 2**16 else "uint32"))
    with ThreadPoolExecutor(32) as pool:  # a request for each file in a bucket
        files = list(pool.map(lambda file: _open(file[0], file[1], raw), found))
    return Windows(files, sequence_length, vocab_size)


def train_batches(
    sources: Sequence[Windows],
    batch_size: int,
    seed: int,
    weights: Sequence[float] | None = None,
    rows: slice | np.ndarray = ALL,
) -> grain.DatasetIterator:
    """Returns an endless iterator over the given rows of batches.

    A batch is int32[batch_size, sequence_length + 1]: inputs are all but the last token
    of a window, targets all but the first. Each source is shuffled as a whole, in
    another order in each epoch. The position is `get_state()`, one number that is the
    same for every number of processes.

    Args:
      sources: where to read.
      batch_size: rows of a batch over all processes.
      seed: determines the order.
      weights: of the sources in a batch; by default their numbers of windows.
      rows: which rows of a batch this process needs.
    """
    offsets = np.cumsum([0, *map(len, sources)])
    if batch_size > offsets[-1]:
        raise UserError(
            f"batch_size is {batch_size}, but the text has only {offsets[-1]} windows:"
            " give more text, or lower --config.batch_size or sequence_length."
        )
    # Grain permutes numbers of windows. Only the rows of this process are read.
    if weights is None:
        order = grain.MapDataset.range(offsets[-1]).seed(seed).shuffle().repeat()
    else:
        parts = [
            grain.MapDataset.range(int(start), int(stop))
            .seed(seed + i)
            .shuffle()
            .repeat()
            for i, (start, stop) in enumerate(itertools.pairwise(offsets))
        ]
        order = grain.MapDataset.mix(parts, list(weights))

    def read(numbers: np.ndarray) -> np.ndarray:
        numbers = numbers[rows]
        which = np.searchsorted(offsets, numbers, side="right") - 1
        pairs = zip(which, numbers - offsets[which], strict=True)
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
    order = grain.MapDataset.range(len(source)).seed(0).shuffle()
    n_batches = min(n_batches, max(1, len(source) // batch_size))
    n = min(len(source), n_batches * batch_size)
    first = np.array([order[i] for i in range(n)])
    numbers = np.resize(first, (n_batches, batch_size))
    return [np.stack([source[n] for n in batch[rows]]) for batch in numbers]


def fingerprint(sources: Sequence[Windows]) -> dict[str, object]:
    """Makes a fingerprint of the text of a run, independent of where it is stored."""
    files = [file for source in sources for file in source.files]
    digest = hashlib.sha256("".join(file.digest for file in files).encode())
    return {
        "files": len(files),
        "tokens": sum(file.n_tokens for file in files),
        "digest": digest.hexdigest()[:16],
    }


def _find(pattern: str) -> list[tuple[str, int]]:
    """Returns path and size of each file that a path or glob names, in order."""
    fs, path = fsspec.url_to_fs(pattern)
    try:
        is_name = fs.exists(path)  # even if it contains the characters of a glob
        found = {path: fs.info(path)} if is_name else fs.glob(path, detail=True)
    except Exception as error:  # from any storage
        raise UserError(f"{pattern} cannot be read: {error!r}") from error
    files = {p: info["size"] for p, info in found.items() if info["type"] == "file"}
    if not files:
        kind = "names a directory" if found else "names no file"
        raise UserError(
            f"data path {pattern!r} {kind}: give token files, such as 'tokens/*.bin',"
            " which examples.tools.tokenize_shards makes of text."
        )
    full = fs.unstrip_protocol if "://" in pattern else str
    return [(full(p), size) for p, size in sorted(files.items())]


def _open(path: str, size: int, raw: np.dtype) -> TokenFile:
    """Reads the header of a file. `raw` is the dtype of files without one."""
    fs, name = fsspec.url_to_fs(path)
    try:
        head = fs.cat_file(name, 0, min(size, 2 * _HEADER_BYTES))
    except Exception as error:  # from any storage
        raise UserError(f"{path} cannot be read: {error!r}") from error
    offset, dtype, count = 0, raw, None
    magic = int.from_bytes(head[:4], "little")
    if head[:6] == b"\x93NUMPY":
        offset, dtype, count = _numpy_header(path, head)
    elif magic in _LLMC and size >= _HEADER_BYTES:
        offset, dtype = _HEADER_BYTES, np.dtype(_LLMC[magic])
        count = int.from_bytes(head[8:12], "little")
    n_tokens, rest = divmod(size - offset, dtype.itemsize)
    if rest or (count is not None and count != n_tokens):
        says = f"{count:,} tokens" if count is not None else f"no header and {raw} ids"
        raise UserError(
            f"{path} has {says}, which does not fit its {size:,} bytes: it is"
            " truncated, still being written, or of another format."
        )
    if not n_tokens:
        raise UserError(f"{path} has no tokens: delete it or choose other files.")
    identity = f"{path.rpartition('/')[2]} {size} ".encode() + head
    return TokenFile(
        path, dtype, offset, n_tokens, hashlib.sha256(identity).hexdigest()
    )


def _numpy_header(path: str, head: bytes) -> tuple[int, np.dtype, int]:
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except ValueError as error:
        raise UserError(f"{path} has a damaged header of NumPy: {error}") from error
    if len(shape) != 1 or dtype.kind not in "iu":
        raise UserError(
            f"{path} is {dtype}{list(shape)}, but token files are one-dimensional"
            " arrays of integers."
        )
    return stream.tell(), dtype, shape[0]
