"""Checkpoints of all that a run needs to go on as if it had not stopped."""

from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from flax import nnx

from examples.lm import Config

_MAY_CHANGE = {
    "steps",
    "eval_every",
    "eval_batches",
    "checkpoint_every",
    "keep_checkpoints",
    "workdir",
    "resume",
    "data.cache_dir",
}
"""What of a config may differ when a run is resumed."""


def open_manager(directory: Path, keep: int) -> ocp.CheckpointManager:
    """Returns a manager, to be used in a `with`, that keeps the last checkpoints."""
    latest = ocp.checkpoint_managers.LatestN(keep)
    options = ocp.CheckpointManagerOptions(preservation_policy=latest)
    return ocp.CheckpointManager(directory.absolute(), options=options)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    batches: grain.DatasetIterator,
    config: Config,
) -> None:
    """Starts writing a checkpoint; it counts only once it is complete."""
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(_state(model, optimizer)),
        batches=grain.checkpoint.CheckpointSave(batches),
        config=ocp.args.JsonSave(config.to_dict()),
    )
    manager.save(step, args=args)


def restore(
    manager: ocp.CheckpointManager,
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    batches: grain.DatasetIterator,
    config: Config,
) -> int:
    """Brings model, optimizer and batches to the last checkpoint.

    Returns:
      The step of the checkpoint, 0 if there is none.

    Raises:
      ValueError: the checkpoint is of another config.
    """
    step = manager.latest_step()
    if step is None:
        return 0
    args = ocp.args.Composite(config=ocp.args.JsonRestore())
    _check_config(manager.restore(step, args=args)["config"], config)
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        _state(model, optimizer),
    )
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(target),
        batches=grain.checkpoint.CheckpointRestore(batches),
    )
    state = manager.restore(step, args=args)["state"]
    nnx.update(model, state["model"])
    nnx.update(optimizer, state["optimizer"])
    return step


def _state(model: nnx.Module, optimizer: nnx.Optimizer) -> dict[str, Any]:
    parts = {"model": model, "optimizer": optimizer}
    return {name: nnx.to_pure_dict(nnx.state(part)) for name, part in parts.items()}


def _check_config(saved: dict[str, Any], config: Config) -> None:
    old, new = _flat(saved), _flat(config.to_dict())
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted((old.keys() | new.keys()) - _MAY_CHANGE)
        if old.get(name) != new.get(name)
    ]
    if changes:
        raise ValueError(
            f"The checkpoint in {config.workdir} is of another config:"
            f" {'; '.join(changes)}. Resume with the flags of that run, or start a new"
            " one with another workdir or without resume."
        )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested dicts by dotted name."""
    values = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        values |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return values
