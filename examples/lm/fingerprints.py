"""Whether what is read from a checkpoint is what was written.

Orbax restores an array with a flipped byte without a word.
"""

import functools
import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.lm.program import State


def of_arrays(state: State) -> dict[str, int]:
    """Returns a number for each array, by path, that any damaged word changes.

    It depends on the values alone, not on where they are.
    """
    numbers = np.asarray(_fingerprints(state))
    return dict(zip(paths(state), numbers.tolist(), strict=True))


@jax.jit
def _fingerprints(state: State) -> jax.Array:
    def of(x: jax.Array) -> jax.Array:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        words = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        position = functools.reduce(
            lambda p, axis: (
                p * jnp.uint32(x.shape[axis])
                + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            ),
            range(x.ndim),
            jnp.uint32(0),
        )
        # An odd factor loses no bit of a word, and tells places apart.
        return jnp.sum(words * (2 * position + jnp.uint32(1)), dtype=jnp.uint32)

    return jnp.stack([of(x) for x in jax.tree.leaves(state)])


def of_json(parts: dict[str, Any]) -> dict[str, int]:
    """Returns a checksum for each part."""
    texts = {name: json.dumps(part, sort_keys=True) for name, part in parts.items()}
    return {name: zlib.crc32(text.encode()) for name, text in texts.items()}


def not_finite(state: State) -> list[str]:
    """Names the arrays that hold an infinity or a NaN."""
    names = zip(paths(state), np.asarray(_are_finite(state)), strict=True)
    return [name for name, is_finite in names if not is_finite]


@jax.jit
def _are_finite(state: State) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state)])


def check(now: dict[str, int], saved: Mapping[str, Any]) -> None:
    """Raises ValueError if fingerprints are not those that were saved."""
    if damaged := [name for name, number in now.items() if saved.get(name) != number]:
        raise ValueError(f"{some(damaged)} has other values than were saved")


def paths(state: State) -> list[str]:
    """Names of the leaves, as Orbax writes them."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in leaves]


def some(items: list[str], separator: str = ", ") -> str:
    """Lists the first few."""
    more = [f"and {len(items) - 5} more"] if len(items) > 5 else []
    return separator.join(items[:5] + more)
