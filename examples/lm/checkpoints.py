"""Checkpoints of all that a run needs to go on as if it had not stopped.

They are written in the background and count once they are complete. They may be read on
another mesh and by another number of processes.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from examples.lm import Config, fingerprints, processes
from examples.lm.compatibility import (
    Text,
    Unusable,
    check_arrays,
    check_config,
    check_text,
)
from examples.lm.errors import UserError
from examples.lm.fingerprints import some
from examples.lm.program import State

_JSON = ("config", "batches", "text", "fingerprints")
"""Parts of a checkpoint beside its arrays."""


class DiskFull(UserError):
    """Checkpoints or metrics could not be written."""


class NotFinite(UserError):
    """Training has diverged."""


class AllDamaged(UserError, RuntimeError):
    """There are checkpoints, and none can be read."""


class Checkpoint(NamedTuple):
    """What a run goes on from."""

    state: State
    position: Any  # in the training batches, as `get_state()` of their iterator tells
    text: Text


def open_manager(directory: Path, keep: int) -> ocp.CheckpointManager:
    """Returns a manager, to be used in a `with`, that keeps the last checkpoints."""
    latest = ocp.checkpoint_managers.LatestN(keep)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=latest, cleanup_tmp_directories=True
    )
    handlers: dict[str, Any] = dict.fromkeys(_JSON, ocp.JsonCheckpointHandler())
    handlers["state"] = ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(
        directory.absolute(), options=options, item_handlers=handlers
    )


@contextlib.contextmanager
def full_disk_explained(directory: Path, step: Callable[[], int]) -> Iterator[None]:
    """Turns what Orbax, or the log of metrics, raises on a full disk into DiskFull.

    Args:
      directory: of the checkpoints.
      step: says at which step the run is.
    """
    try:
        yield
    except Exception as error:  # OSError or, from where Orbax writes arrays, ValueError
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        complete = complete_steps(directory)
        last = f"of step {complete[-1]}" if complete else "none yet"
        raise DiskFull(
            f"The disk of {directory} is full, seen at step {step()}. The last complete"
            f" checkpoint is {last}. Free some space, then repeat the command with"
            " --config.resume"
        ) from error


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: State,
    position: Any,
    config: Config,
    text: Text,
) -> None:
    """Starts writing a checkpoint; it counts only once it is complete.

    Args:
      manager: of the run's directory.
      step: number of steps taken.
      state: after that step.
      position: in the training batches, as their iterator's `get_state()` tells it.
      config: of the run.
      text: fingerprints of what it is trained on.

    Raises:
      NotFinite: the state has infinities or NaNs, which are never saved.
    """
    manager.wait_until_finished()  # and has deleted the oldest
    if broken := fingerprints.not_finite(state):
        raise diverged(manager, step, f"{some(broken)} has infinities or NaNs")
    with processes.fail_together():
        _check_space(manager.directory, state)
    parts = {"config": config.to_dict(), "batches": position, "text": text}
    parts["fingerprints"] = fingerprints.of_arrays(state) | fingerprints.of_json(parts)
    json_args = {name: ocp.args.JsonSave(part) for name, part in parts.items()}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), **json_args)
    manager.save(step, args=args)


def diverged(manager: ocp.CheckpointManager, step: int, cause: str) -> NotFinite:
    """Returns the error to raise once training has nothing finite to go on with."""
    manager.wait_until_finished()
    complete = complete_steps(Path(manager.directory))
    last = f"the checkpoint of step {complete[-1]}" if complete else "no checkpoint"
    return NotFinite(
        f"Training has diverged at step {step}: {cause}. Nothing of it is saved;"
        f" {last} is left. Lower the learning rates"
        " --config.tables.embed_learning_rate, --config.tables.head_learning_rate or"
        " --config.body.learning_rate, or raise --config.warmup_fraction, in another"
        " --config.workdir."
    )


def _check_space(directory: os.PathLike, state: State) -> None:
    """Raises OSError if a checkpoint does not fit.

    Orbax would find that out as well, but of several processes the others would wait
    twenty minutes for the one that did.
    """
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    if shutil.disk_usage(directory).free < size + 2**20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def restore(
    manager: ocp.CheckpointManager,
    target: State,
    batches: grain.DatasetIterator,
    config: Config,
    text: Text,
) -> tuple[State, int] | None:
    """Returns the state and step of the last good checkpoint, None if there is none.

    Brings `batches` to that step as well. A damaged checkpoint is set aside, and the
    one before it used, with a message.

    Args:
      manager: of the run's directory.
      target: shapes, dtypes and shardings to restore to.
      batches: iterator over the training batches.
      config: of the run that is to go on.
      text: fingerprints of what that is trained on.

    Raises:
      Unusable: the checkpoint is of another model, optimizer, config or text.
      AllDamaged: there are checkpoints, but none can be read.
    """
    damaged: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        path = manager.directory / str(step)
        with _other_reads_ended():
            try:
                checkpoint = read(path, target, config)
                check_text(checkpoint.text, text, str(path))
            except Unusable:
                raise
            except Exception as error:  # Orbax has no type of its own for damage
                reason = str(error.__cause__ or error) or repr(error)
                damaged[step] = reason.splitlines()[0]
        if step in damaged:
            continue
        _set_aside(manager, damaged)
        batches.set_state(checkpoint.position)
        return checkpoint.state, step
    if damaged:
        raise AllDamaged(
            f"No checkpoint in {manager.directory} can be read, the last one because"
            f" of: {damaged[max(damaged)]}. To start again, which deletes them, give"
            " --config.overwrite instead of --config.resume."
        )
    return None


def complete_steps(directory: Path) -> list[int]:
    """Returns the steps of all complete checkpoints in a directory, in order."""
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit())


def read_config(path: Any) -> Config:
    """Returns the config of the run that wrote a checkpoint."""
    return ConfigDict(ocp.JsonCheckpointHandler().restore(path / "config"))


def read(path: Any, target: State, config: Config) -> Checkpoint:
    """Returns one checkpoint.

    Args:
      path: directory of the checkpoint, a `pathlib.Path` or one of Orbax.
      target: shapes, dtypes and shardings to restore to.
      config: of the run that is to go on.

    Raises:
      Unusable: the checkpoint is of another model, optimizer or config.
      Exception: it is damaged.
    """
    json_handler, arrays = ocp.JsonCheckpointHandler(), ocp.StandardCheckpointHandler()
    # Not by `manager.restore`: there, a process that can read its part waits for ever
    # for one that cannot.
    with processes.fail_together():
        parts: dict[str, Any] = {n: json_handler.restore(path / n) for n in _JSON}
        saved = parts.pop("fingerprints")
        fingerprints.check(fingerprints.of_json(parts), saved)
        check_arrays(arrays.metadata(path / "state").tree, target, str(path))
        check_config(parts["config"], config)
        args = ocp.args.StandardRestore(target)
        state = arrays.restore(path / "state", args=args)
    fingerprints.check(fingerprints.of_arrays(state), saved)
    return Checkpoint(state, parts["batches"], parts["text"])


def _set_aside(manager: ocp.CheckpointManager, damaged: dict[int, str]) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again."""
    if not damaged:
        return
    for step, reason in damaged.items():
        if processes.is_primary():
            path = Path(manager.directory, str(step))
            # A name of its own: the step may have been damaged before.
            aside = tempfile.mkdtemp(prefix=f"damaged-{step}-", dir=path.parent)
            print(
                f"The checkpoint of step {step} is damaged ({reason}); going on"
                f" from the one before it. The damaged one is kept as {aside}.",
                flush=True,
            )
            path.rename(aside)
    processes.wait_for_all("damaged checkpoints are set aside")
    manager.reload()


@contextlib.contextmanager
def _other_reads_ended() -> Iterator[None]:
    """Ends the reads that Orbax leaves when one of them fails.

    Python would else report each of them, with a traceback, at some later time: those
    that wait once they are collected, those under way once they end.
    """
    report, log = sys.unraisablehook, logging.getLogger("asyncio")

    def report_others(problem: Any) -> None:
        if str(problem.exc_value) != "Event loop is closed":
            report(problem)

    sys.unraisablehook = report_others
    try:
        yield
    finally:
        sys.unraisablehook, log.disabled = lambda _: None, True
        deadline = time.monotonic() + 30
        while _has_left_reads() and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)
        sys.unraisablehook, log.disabled = report, False


def _has_left_reads() -> bool:
    return any(
        type(x) is asyncio.Task and not x.done() and x.get_loop().is_closed()
        for x in gc.get_objects()
    )
