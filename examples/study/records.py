"""Finished runs, one JSON object a line, and claims of those being run."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.study.run import Settings

Losses = dict[Settings, float]
"""Validation loss of every finished run; infinite where it diverged."""


def read(path: Path) -> dict[Settings, dict[str, Any]]:
    """Returns the finished runs by their settings."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = map(json.loads, lines)
    return {Settings(**record["settings"]): record for record in records}


def read_losses(path: Path) -> Losses:
    losses = {run: record["validation_loss"] for run, record in read(path).items()}
    return {run: math.inf if x is None else x for run, x in losses.items()}


def append(path: Path, record: dict[str, Any]) -> None:
    """Adds a line, whole even when other processes add theirs at the same time."""
    line = json.dumps(record, allow_nan=False) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


@contextlib.contextmanager
def claim(path: Path, run: Settings) -> Iterator[bool]:
    """Yields whether this process may do a run whose result belongs in `path`.

    The claim is a lock on a file, so it ends with the process, however that ends.
    """
    key = json.dumps([str(path.resolve()), dataclasses.asdict(run)])
    directory = Path(".cache", "claims")
    directory.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    with (directory / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            # Another process may have finished it since the file was last read.
            yield run not in read(path)
