"""A directory of what was computed from a corpus, which mends itself."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.lm.locks import lock

_TOKENS, _TOKENIZER = "tokens.npz", "tokenizer.json"


class Entry(NamedTuple):
    """What is kept of a corpus."""

    train: np.ndarray  # token ids, uint16 or uint32
    validation: np.ndarray
    tokenizer: str  # as JSON


def get(directory: Path, make: Callable[[], Entry]) -> Entry:
    """Returns the entry in a directory, which is made where it is missing or damaged.

    Of several processes that need it, one makes it and the others wait. What a killed
    one has left is removed.

    Args:
      directory: of this entry.
      make: computes it.
    """
    with contextlib.suppress(Exception):
        return _read(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with lock(directory / "lock", wait=True):
        try:
            return _read(directory)
        except Exception as error:  # of any type: a byte may be wrong anywhere
            left = [path.name for path in directory.iterdir() if path.name != "lock"]
            if left:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                print(f"The cache {directory} is damaged ({reason}): making it again.")
        try:
            for name in left:
                (directory / name).unlink()
            entry = make()
            _write(directory, entry)
        except BaseException:
            shutil.rmtree(directory)
            raise
    return entry


def _read(directory: Path) -> Entry:
    # The archive has a checksum of each array.
    with (directory / _TOKENS).open("rb") as file, np.load(file) as arrays:
        train, validation = arrays["train"], arrays["validation"]
        saved_digest = arrays["tokenizer"].tobytes()
    content = (directory / _TOKENIZER).read_bytes()
    if _digest(content) != saved_digest:
        raise ValueError(f"{_TOKENIZER} is not what was written")
    return Entry(train, validation, content.decode())


def _write(directory: Path, entry: Entry) -> None:
    """Writes both files, under their names only once they are complete."""
    content = entry.tokenizer.encode()
    scratch = {name: directory / f"{name}.tmp" for name in (_TOKENIZER, _TOKENS)}
    scratch[_TOKENIZER].write_bytes(content)
    digest = np.frombuffer(_digest(content), np.uint8)
    with scratch[_TOKENS].open("wb") as file:
        np.savez(file, train=entry.train, validation=entry.validation, tokenizer=digest)
    for name, path in scratch.items():
        os.replace(path, directory / name)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
