"""Results on disk: finished runs as JSON Lines, other measurements as JSON objects.

A run is a dict. Its "settings" identify it among the runs of its file.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common.provenance import provenance

Run = dict[str, Any]
Settings = dict[str, Any]


def read(path: Path) -> list[Run]:
    """Returns the finished runs of a file; an empty list if the file does not exist."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def find(path: Path, settings: Settings) -> Run | None:
    """Returns the finished run with exactly these settings."""
    return next((run for run in read(path) if run["settings"] == settings), None)


def append(path: Path, run: Run) -> None:
    """Adds a line atomically, so that several processes can append to a file."""
    line = json.dumps(run, allow_nan=False) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


@contextlib.contextmanager
def claim(path: Path, settings: Settings) -> Iterator[bool]:
    """Yields True if this process may do a run whose result belongs in `path`.

    The claim is a lock on a file, which the system releases when the process ends.
    """
    key = json.dumps([str(path.resolve()), settings])
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
            yield find(path, settings) is None


def run_once(
    path: Path, settings: Settings, execute: Callable[[], Run], *packages: str
) -> Run:
    """Returns the run with these settings; does it first if it is not finished.

    Args:
      path: file of the runs.
      settings: settings of the run.
      execute: function that does the run and returns its results.
      *packages: further distributions whose versions to record.
    """
    run = find(path, settings)
    if run is None:
        run = {"settings": settings} | execute() | provenance(*packages)
        append(path, run)
    return run


def read_object(path: Path) -> dict[str, Any]:
    """Returns a measurement that :func:`write_object` wrote."""
    return json.loads(path.read_text())


def write_object(path: Path, content: dict[str, Any], *packages: str) -> None:
    """Writes a measurement with its provenance; replaces the previous one.

    Args:
      path: file of the measurement.
      content: the measurement, as JSON types.
      *packages: further distributions whose versions to record.
    """
    path.write_text(json.dumps(provenance(*packages) | content, indent=2) + "\n")
