"""Device meshes, and the sharding of parameters and batches on them."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.core.spmd import get_pspec
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from examples.lm import Config
from examples.lm.errors import UserError


@contextlib.contextmanager
def use_mesh(config: Config, devices: Sequence[Any] | None = None) -> Iterator[Mesh]:
    """Puts the mesh and the logical axis rules of a config into context.

    Args:
      config: `config.mesh` has the size of each mesh axis, -1 for the devices that
        remain, and `config.axis_rules` the mesh axes of each logical axis.
      devices: by default `jax.devices()`. A single process may use the first few of
        them, several processes need all.

    Raises:
      UserError: the devices, or the sequences of a batch, do not divide evenly.
    """
    devices = jax.devices() if devices is None else devices
    sizes, n_devices = config.mesh.to_dict(), len(devices)
    known = math.prod(size for size in sizes.values() if size != -1)
    shape = [n_devices // max(known, 1) if n == -1 else n for n in sizes.values()]
    n = math.prod(shape)
    # A process without a device in the mesh could not take part.
    all_needed = -1 in sizes.values() or jax.process_count() > 1
    if not 0 < n <= n_devices or (all_needed and n != n_devices):
        raise UserError(
            f"config.mesh is {sizes}, which does not fit {n_devices} devices: set"
            " --config.mesh.data, fsdp and tensor so that their product is the number"
            " of devices. One of them may be -1, for the devices that remain."
        )
    # jax.make_mesh would refuse to split an axis of a TPU slice.
    grid = mesh_utils.create_device_mesh(
        shape, devices[:n], allow_split_physical_axes=True
    )
    mesh = Mesh(grid, tuple(sizes), (AxisType.Auto,) * len(sizes))
    rules = {
        name: tuple(axes.split(",")) if axes else ()
        for name, axes in config.axis_rules.items()
    }
    if unknown := {axis for axes in rules.values() for axis in axes} - {*sizes}:
        raise UserError(f"config.axis_rules names the mesh axis {min(unknown)!r}.")
    shards = math.prod(mesh.shape[axis] for axis in rules["batch"])
    parts = config.accumulate_steps
    if config.batch_size % (shards * parts):
        raise UserError(
            f"batch_size is {config.batch_size}, but {shards} shards of a batch on the"
            f" mesh {dict(mesh.shape)}, accumulated over {parts} parts, need a multiple"
            f" of {shards * parts}."
        )
    with jax.set_mesh(mesh), nnx.logical_axis_rules(tuple(rules.items())):
        yield mesh


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch's first axis under the rules in context."""
    return NamedSharding(mesh, get_pspec(("batch",)))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a batch that the devices of this process need, in order.

    They need not be consecutive: JAX orders a mesh by the links between its devices.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in indices.values() if index]
    return np.unique(np.concatenate(rows))
