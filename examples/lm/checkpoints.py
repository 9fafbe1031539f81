"""Checkpoints of all that a run needs to go on as if it had not stopped.

They are written in the background and count once they are complete. They may be read on
another mesh and by another number of processes.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from examples.lm import Config, fingerprints, processes
from examples.lm.fingerprints import paths, some
from examples.lm.program import State

_MAY_CHANGE = (
    "steps",
    "eval_every",
    "eval_batches",
    "checkpoint_every",
    "keep_checkpoints",
    "workdir",
    "resume",
    "data.cache_dir",
    "mesh",
    "axis_rules",
    "loss_chunks",
    "model.remat",
    "compile_topology",
)
"""What of a config may differ when a run is resumed."""


_JSON = ("config", "batches", "fingerprints")
"""Parts of a checkpoint beside its arrays."""


class Unusable(ValueError):
    """A checkpoint is of another run: the way out is not an earlier one."""


class DiskFull(RuntimeError):
    """Checkpoints or metrics could not be written."""


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
) -> None:
    """Starts writing a checkpoint; it counts only once it is complete.

    Args:
      manager: of the run's directory.
      step: number of steps taken.
      state: after that step.
      position: in the training batches, as their iterator's `get_state()` tells it.
      config: of the run.
    """
    manager.wait_until_finished()  # and has deleted the oldest
    with processes.fail_together():
        _check_space(manager.directory, state)
    parts = {"config": config.to_dict(), "batches": position}
    parts["fingerprints"] = fingerprints.of_arrays(state) | fingerprints.of_json(parts)
    json_args = {name: ocp.args.JsonSave(part) for name, part in parts.items()}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), **json_args)
    manager.save(step, args=args)


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
) -> tuple[State, int] | None:
    """Returns the state and step of the last good checkpoint, None if there is none.

    Brings `batches` to that step as well. A damaged checkpoint is set aside, and the
    one before it used, with a message.

    Args:
      manager: of the run's directory.
      target: shapes, dtypes and shardings to restore to.
      batches: iterator over the training batches.
      config: of the run that is to go on.

    Raises:
      Unusable: the checkpoint is of another model, optimizer or config.
      RuntimeError: there are checkpoints, but none can be read.
    """
    damaged = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            path = manager.directory / str(step)
            state, position = read(path, target, config)
        except Unusable:
            raise
        except Exception as error:  # Orbax has no type of its own for damage
            damaged[step] = error
            continue
        _set_aside(manager, damaged)
        batches.set_state(position)
        return state, step
    if damaged:
        raise RuntimeError(
            f"No checkpoint in {manager.directory} can be read, the last one because of"
            " the error above. To start again, which deletes them, leave out"
            " --config.resume."
        ) from damaged[max(damaged)]
    return None


def complete_steps(directory: Path) -> list[int]:
    """Returns the steps of all complete checkpoints in a directory, in order."""
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit())


def read_config(path: Any) -> Config:
    """Returns the config of the run that wrote a checkpoint."""
    return ConfigDict(ocp.JsonCheckpointHandler().restore(path / "config"))


def read(path: Any, target: State, config: Config) -> tuple[State, Any]:
    """Returns the state of one checkpoint and the position in the training batches.

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
        _check_arrays(arrays.metadata(path / "state").tree, target, str(path))
        _check_config(parts["config"], config)
        args = ocp.args.StandardRestore(target)
        state = arrays.restore(path / "state", args=args)
    fingerprints.check(fingerprints.of_arrays(state), saved)
    return state, parts["batches"]


def _set_aside(manager: ocp.CheckpointManager, damaged: dict[int, Exception]) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again."""
    if not damaged:
        return
    for step, error in damaged.items():
        if processes.is_primary():
            path = Path(manager.directory, str(step))
            # A name of its own: the step may have been damaged before.
            aside = tempfile.mkdtemp(prefix=f"damaged-{step}-", dir=path.parent)
            reason = str(error.__cause__ or error).splitlines()[0]
            print(
                f"The checkpoint of step {step} is damaged ({reason:.200}); going on"
                f" from the one before it. The damaged one is kept as {aside}.",
                flush=True,
            )
            path.rename(aside)
    processes.wait_for_all("damaged checkpoints are set aside")
    manager.reload()


def _check_arrays(metadata: Any, target: State, path: str) -> None:
    """Raises Unusable if the arrays of a checkpoint are not those of the run."""
    old = {x.name: tuple(x.shape) for x in jax.tree.leaves(metadata)}
    shapes = [x.shape for x in jax.tree.leaves(target)]
    new = dict(zip(paths(target), shapes, strict=True))
    # Parameters come first: what differs there explains the rest.
    names = sorted(old | new, key=lambda name: (not name.startswith("params"), name))
    listed = [
        f"{name} is {old.get(name, 'missing')} there, {new.get(name, 'missing')} here"
        for name in names
        if old.get(name) != new.get(name)
    ]
    if listed:
        raise Unusable(
            f"The checkpoint {path} is of another model or optimizer:"
            f" {some(listed, '; ')}. Resume with the flags of that run, or start a new"
            " one in another --config.workdir."
        )


def _check_config(saved: dict[str, Any], config: Config) -> None:
    old, new = _flat(saved), _flat(config.to_dict())
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
        and not f"{name}.".startswith(tuple(f"{may}." for may in _MAY_CHANGE))
    ]
    if changes:
        raise Unusable(
            f"The checkpoint in {config.workdir} is of another config:"
            f" {'; '.join(changes)}. Resume with the flags of that run, or start a new"
            " one with another workdir or without resume."
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested dicts by dotted name."""
    values = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        values |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return values
