"""Real text for tiny models: the source of Python's standard library."""

import functools

import jax
import numpy as np

from benchmarks.trainers.checks import STEPS
from examples import quickstart

VOCAB_SIZE = quickstart.VOCAB_SIZE
BATCH, TIME = 8, 32


@functools.cache
def batches() -> np.ndarray:
    """Returns the tokens of all steps, int32[STEPS, BATCH, TIME + 1]."""
    tokens = np.asarray(quickstart.read_tokens())
    starts = np.random.default_rng(0).integers(
        len(tokens) - TIME - 1, size=(STEPS, BATCH, 1)
    )
    return tokens[starts + np.arange(TIME + 1)].astype(np.int32)


def mesh(*sizes: int, names: tuple[str, ...] = ("data", "model")) -> jax.sharding.Mesh:
    """Returns a mesh of all devices with Auto axes."""
    axis_types = (jax.sharding.AxisType.Auto,) * len(names)
    return jax.make_mesh(sizes, names, axis_types=axis_types)
