"""Files of token ids, on a disk or in a bucket, found by path or glob.

Formats: `.bin` of llm.c and modded-nanogpt (header of 256 int32), `.bin` of nanoGPT and
`.npy` of OLMo (no header), and files of `numpy.save`.
"""

import hashlib
import io
from typing import NamedTuple

import fsspec
import numpy as np

from examples.lm.errors import UserError, explained

# Version and dtype of llm.c's files by magic number, for GPT-2 and for Llama 3.
LLMC = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
LLMC_HEADER_BYTES = 1024


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
        with explained(f"{self.path} cannot be read"):
            if "://" in self.path:
                fs, name = fsspec.url_to_fs(self.path)
                tokens = np.frombuffer(fs.cat_file(name, begin, end), self.dtype)
            else:
                tokens = np.fromfile(self.path, self.dtype, stop - start, offset=begin)
        if len(tokens) != stop - start:
            raise UserError(f"{self.path} has been truncated since the run started.")
        return tokens


def find(pattern: str) -> list[tuple[str, int]]:
    """Returns path and size of each file that a path or glob names, in order.

    A glob leaves out directories and hidden files.
    """
    with explained(f"{pattern} cannot be read"):
        fs, path = fsspec.url_to_fs(pattern)
        if fs.exists(path):  # even if its name contains the characters of a glob
            found = {path: fs.info(path)}
        else:
            found = {
                # fsspec does not follow links in a listing.
                p: fs.info(p) if info.get("islink") else info
                for p, info in fs.glob(path, detail=True).items()
                if not p.rpartition("/")[2].startswith(".")
            }
    full = fs.unstrip_protocol if "://" in pattern else str
    files = [(full(p), x["size"]) for p, x in found.items() if x["type"] == "file"]
    if not files:
        raise UserError(
            f"{pattern!r} names no file: give a path or a glob, such as 'tokens/*.bin'."
        )
    return sorted(files)


def open_file(path: str, size: int, raw: np.dtype) -> TokenFile:
    """Reads the header of a file; `raw` is the dtype of files without one.

    Raises:
      UserError: the file is empty, truncated or of another format.
    """
    with explained(f"{path} cannot be read"):
        fs, name = fsspec.url_to_fs(path)
        head = fs.cat_file(name, 0, min(size, 2 * LLMC_HEADER_BYTES))
    offset, dtype, count = 0, raw, None
    magic = int.from_bytes(head[:4], "little")
    if head[:6] == b"\x93NUMPY":
        with explained(f"{path} has a damaged header of NumPy"):
            file = io.BytesIO(head)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if len(shape) != 1 or dtype.kind not in "iu":
            raise UserError(
                f"{path} is {dtype}{list(shape)}, but token files are one-dimensional"
                " arrays of integers."
            )
        offset, count = file.tell(), shape[0]
    elif magic in LLMC and size >= LLMC_HEADER_BYTES:
        known, dtype = LLMC[magic][0], np.dtype(LLMC[magic][1])
        version, count = np.frombuffer(head[4:12], "<i4").tolist()
        offset = LLMC_HEADER_BYTES
        if version != known:
            raise UserError(
                f"{path} has version {version} of llm.c's header, not {known}."
            )
    n_tokens, rest = divmod(size - offset, dtype.itemsize)
    if rest or (count is not None and count != n_tokens):
        says = f"no header and {raw} ids" if count is None else f"{count:,} tokens"
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
