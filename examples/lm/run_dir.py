"""The directory of a run: one run at a time, and none replaces another by mistake."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from examples.lm import Config, processes
from examples.lm.errors import UserError
from examples.lm.locks import Taken, lock


@contextlib.contextmanager
def claim(directory: Path, config: Config) -> Iterator[None]:
    """Holds the directory of a run for this process, or for all processes of one run.

    Raises:
      UserError: another run is going on there, or has left what must not be replaced.
    """
    with contextlib.ExitStack() as stack:
        if processes.is_primary():
            stack.enter_context(locked(directory))
            refuse_to_replace(directory, config)
        yield


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a run's directory, which it makes.

    Raises:
      UserError: another run holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(directory / "lock"))
        except Taken as taken:
            raise UserError(
                f"Another run ({taken}) is going on in {directory}. Wait for it, stop"
                " it, or give another --config.workdir."
            ) from taken
        yield


def refuse_to_replace(directory: Path, config: Config) -> None:
    """Raises UserError where a new run would replace what another has left."""
    checkpoints = sorted((directory / "checkpoints").glob("*"))
    found = [path for path in checkpoints if not path.name.endswith("-tmp")]
    found += [path for path in directory.glob("metrics.jsonl") if path.stat().st_size]
    if found and not config.resume and not config.overwrite:
        raise UserError(
            f"{directory} holds another run ({found[0].relative_to(directory)}). To go"
            " on with it, give --config.resume; to keep it, another --config.workdir;"
            " to delete it, --config.overwrite."
        )
