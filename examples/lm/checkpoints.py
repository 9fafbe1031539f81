"""Checkpoints by Orbax, with checksums, and the directory of a run."""

import contextlib
import fcntl
import functools
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from examples.lm import Config
from examples.lm.config import flat
from examples.lm.distributed import is_primary, log, wait_for_all
from examples.lm.errors import UserError, explained, reason

_MAY_CHANGE = (
    "accumulate_steps axis_rules checkpoint_every cost_report_topology data.path"
    " data.tokenizer data.validation_path eval_batches eval_every keep_checkpoints"
    " log_every loss_chunks mesh model.attention model.remat overwrite resume steps"
    " tensorboard workdir"
).split()


class Checkpoint(NamedTuple):
    step: int
    state: Any
    position: dict[str, Any]  # of the batches


def identity(config: Config, text: dict[str, Any]) -> dict[str, Any]:
    """Returns all that must not change when a run is resumed, by name.

    Args:
      config: the config of the run.
      text: its fingerprint. The files may move.
    """
    kept = {
        name: value
        for name, value in flat(config).items()
        if not f"{name}.".startswith(tuple(f"{may}." for may in _MAY_CHANGE))
    }
    # JSON has no tuples.
    return json.loads(json.dumps(kept | {f"text.{k}": v for k, v in text.items()}))


class Checkpoints:
    """Writes and reads the checkpoints of a run; the last `keep` of them remain."""

    def __init__(self, directory: epath.Path, keep: int):
        self._directory = directory
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Waits for the last checkpoint to be complete."""
        # An earlier error says more than an unfinished checkpoint.
        with contextlib.suppress(Exception) if error else self._explained():
            self._manager.close()

    def _explained(self) -> contextlib.AbstractContextManager:
        return explained(
            f"No checkpoint can be written to {self._directory}",
            "The last complete one remains.",
        )

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, position: Any, run: dict[str, Any]) -> None:
        """Copies a state to the host and writes it while training continues.

        Raises:
          UserError: a value is not finite. Nothing is saved.
        """
        sums, is_finite = _inspect(state)
        if not is_finite:
            raise diverged(step, "a parameter or its optimizer state is not finite")
        facts = {
            "position": position,
            "run": run,
            "checksums": np.asarray(sums).tolist(),
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts)
        )
        with self._explained():  # also errors of the checkpoint before
            self._manager.save(step, args=items, force=True)

    def restore(self, target: Any, run: dict[str, Any] | None) -> Checkpoint | None:
        """Reads the last checkpoint that is not damaged, None if there is none.

        Args:
          target: state of `jax.ShapeDtypeStruct` with the shardings of this run.
          run: see :func:`identity`; None does not compare it.

        Raises:
          UserError: the checkpoint belongs to another run, or all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                facts = self._read(step, "facts", ocp.args.JsonRestore())
                if run is not None:
                    _check_same(facts["run"], run, f"{self._directory}/{step}")
                state = self._read(step, "state", ocp.args.StandardRestore(target))
                if np.asarray(_inspect(state)[0]).tolist() == facts["checksums"]:
                    return Checkpoint(step, state, facts["position"])
                why = "its checksums differ"
            except (UserError, MemoryError, jax.errors.JaxRuntimeError):
                raise  # the checkpoint is not to blame
            except Exception as error:  # from any storage, and from damaged files
                why = reason(error)
            self._set_aside(step, why)
        if steps:
            raise UserError(f"{self._directory} has no checkpoint that can be read.")
        return None

    def _read(self, step: int, name: str, args: Any) -> Any:
        items = ocp.args.Composite(**{name: args})
        return self._manager.restore(step, args=items)[name]

    def _set_aside(self, step: int, why: str) -> None:
        """Moves a damaged checkpoint away, so that its step can be saved again."""
        target = self._directory.parent / f"damaged_{step}"
        log(f"Checkpoint {step} is damaged ({why}). It is now {target}.")
        wait_for_all("damaged checkpoint was seen")
        if is_primary():
            if target.exists():
                target.rmtree()
            (self._directory / str(step)).rename(target)
        wait_for_all("damaged checkpoint is gone")
        self._manager.reload()


@functools.partial(jax.jit, out_shardings=jax.P())
def _inspect(state: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of the bits of each leaf, and whether all values are finite.

    Orbax restores an array with a flipped bit without an error. Sums of integers modulo
    2**32 change with any single bit, and do not depend on the order of summation and
    thus on the sharding.
    """

    def add_up(x: jax.Array) -> jax.Array:
        kind = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
        return bits.sum(dtype=jnp.uint32)

    leaves = jax.tree.leaves(state)
    is_finite = [jnp.isfinite(x).all() for x in leaves]
    return jnp.stack([add_up(x) for x in leaves]), jnp.stack(is_finite).all()


def diverged(step: int, cause: str) -> UserError:
    return UserError(
        f"Training diverged at step {step}: {cause}. This state was not saved; the"
        " checkpoint before it remains. Lower the learning rates or --config.clip_norm."
    )


def _check_same(old: dict[str, Any], new: dict[str, Any], where: str) -> None:
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if changes:
        raise UserError(
            f"The checkpoint {where} belongs to another run: {'; '.join(changes)}."
            " Resume with the flags of that run, or give another --config.workdir."
        )


def open_directory(config: Config, name: str) -> epath.Path:
    """Returns the directory of one run in `config.workdir`.

    Raises:
      UserError: the directory cannot be used, or contains a run that the config does
        not say to resume or to overwrite.
    """
    workdir = str(config.workdir)
    if workdir.startswith("s3://"):
        raise UserError(
            f"config.workdir is {workdir!r}, but Orbax 0.12 writes no checkpoints to"
            " s3://. Mount the bucket (mountpoint-s3, s3fs) and give that path."
        )
    if "://" not in workdir:
        workdir = os.path.abspath(os.path.expanduser(workdir))
    elif config.tensorboard:
        raise UserError("config.tensorboard needs a local or mounted config.workdir.")
    with explained(f"config.workdir {workdir!r} cannot be used"):
        directory = epath.Path(workdir) / name
        if "://" not in workdir:
            directory.mkdir(parents=True, exist_ok=True)
        files = directory / "checkpoints", directory / "metrics.jsonl"
        is_used = any(file.exists() for file in files)
    if is_used and not (config.resume or config.overwrite):
        raise UserError(
            f"{directory} contains a run: add --config.resume to continue it or"
            " --config.overwrite to delete it, or give another --config.workdir."
        )
    return directory


@contextlib.contextmanager
def locked(directory: epath.Path, overwrite: bool) -> Iterator[None]:
    """Keeps other runs out of a local directory, and deletes an earlier run in it.

    The lock ends with the process, so that a killed run can be resumed at once. Buckets
    have no locks.

    Raises:
      UserError: another run uses the directory.
    """
    with contextlib.ExitStack() as stack:
        if is_primary() and "://" not in str(directory):
            file = stack.enter_context((directory / "lock").open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"Another run uses {directory}: wait for it, or give another"
                    " --config.workdir."
                ) from error
            except OSError:
                log(f"{directory} is on storage without locks: start only one run.")
        wait_for_all("the directory is free")
        if overwrite and is_primary():
            for name in ("checkpoints", "tensorboard"):
                (directory / name).rmtree(missing_ok=True)
            (directory / "metrics.jsonl").unlink(missing_ok=True)
        wait_for_all("the directory is empty")
        yield
