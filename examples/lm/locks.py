"""Locks on files, which the system takes back when their process ends, however."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class Taken(Exception):
    """Another process has the lock; the message is what it has written into it."""


@contextlib.contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a file, which stays: it belongs to nobody once this is left.

    Args:
      path: of the file; its directory must exist.
      wait: for a process that has the lock, and not raise `Taken`.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            raise Taken(file.read()) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield
