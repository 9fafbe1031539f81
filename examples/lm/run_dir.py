"""The directory of a run: one run at a time, and none replaces another by mistake."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
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


def delete_earlier(directory: Path, patterns: Iterable[str], overwrite: bool) -> None:
    """Deletes what an earlier run of the same program has left, and nothing else.

    Args:
      directory: of the program.
      patterns: of the names that it gives to files and directories.
      overwrite: whether the user wants that.

    Raises:
      UserError: there is such a run, and it is to be kept.
    """
    found = [path for pattern in patterns for path in sorted(directory.glob(pattern))]
    if found and not overwrite:
        raise UserError(
            f"{directory} holds another run ({found[0].name}). To keep it, give another"
            " --config.workdir; to delete it, --config.overwrite."
        )
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
