"""Real text, meshes and checkpoints for tiny models."""

import functools
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.trainers.checks import SAVED, STEPS
from examples import quickstart

VOCAB_SIZE = quickstart.VOCAB_SIZE
BATCH, TIME = 8, 32


@functools.cache
def batches() -> np.ndarray:
    """Returns the source of Python's library, int32[STEPS, BATCH, TIME + 1]."""
    tokens = np.asarray(quickstart.read_tokens())
    starts = np.random.default_rng(0).integers(
        len(tokens) - TIME - 1, size=(STEPS, BATCH, 1)
    )
    return tokens[starts + np.arange(TIME + 1)].astype(np.int32)


def mesh(*sizes: int, names: tuple[str, ...] = ("data", "model")) -> jax.sharding.Mesh:
    """Returns a mesh of all devices with Auto axes."""
    axis_types = (jax.sharding.AxisType.Auto,) * len(names)
    return jax.make_mesh(sizes, names, axis_types=axis_types)


def checkpoints(folder: Path) -> ocp.CheckpointManager:
    """Makes a manager that saves after SAVED steps and after the last."""
    options = ocp.CheckpointManagerOptions(save_interval_steps=SAVED)
    return ocp.CheckpointManager(folder, options=options)
