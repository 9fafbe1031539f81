"""Where parameters and batches lie, on one device, one host or a pod."""

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
      config: `config.mesh` has the size of each mesh axis, -1 for as many as there are
        devices, and `config.axis_rules` the mesh axes of each logical axis.
      devices: by default `jax.devices()`. One process may use the first few of them,
        several processes need all.

    Raises:
      UserError: the devices, or the sequences of a batch, do not divide evenly.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(config.mesh.to_dict(), len(devices))
    types = (AxisType.Auto,) * len(sizes)
    devices = devices[: math.prod(sizes.values())]
    # jax.make_mesh would refuse to cut an axis of a TPU slice in two.
    grid = mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices, allow_split_physical_axes=True
    )
    mesh = Mesh(grid, tuple(sizes), types)
    rules = {
        name: tuple(axes.split(",")) if axes else ()
        for name, axes in config.axis_rules.items()
    }
    shards = math.prod(mesh.shape[axis] for axis in rules["batch"])
    if config.batch_size % shards:
        raise UserError(
            f"batch_size is {config.batch_size}, but the {shards} shards of a batch on"
            f" the mesh {sizes} need a multiple of {shards}."
        )
    with jax.set_mesh(mesh), nnx.logical_axis_rules(tuple(rules.items())):
        yield mesh


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns how the first axis of a batch is sharded under the rules in context."""
    return NamedSharding(mesh, get_pspec(("batch",)))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns which rows of a batch the devices of this process need, in order.

    They need not be consecutive: JAX orders a mesh by the links between its devices.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in indices.values() if index]
    return np.unique(np.concatenate(rows))


def global_batch(mesh: Mesh, rows: np.ndarray, batch_size: int) -> jax.Array:
    """Returns the batch of which each process has its `local_rows`."""
    return jax.make_array_from_process_local_data(
        batch_sharding(mesh), rows, (batch_size, *rows.shape[1:])
    )


def _sizes(sizes: dict[str, int], n_devices: int) -> dict[str, int]:
    """Returns the size of each axis, with -1 replaced by what is left for it."""
    known = math.prod(size for size in sizes.values() if size != -1)
    filled = {k: n_devices // known if n == -1 else n for k, n in sizes.items()}
    n = math.prod(filled.values())
    # A process without a device in the mesh could not take part.
    all_needed = -1 in sizes.values() or jax.process_count() > 1
    if not 0 < n <= n_devices or (all_needed and n != n_devices):
        raise UserError(
            f"config.mesh is {sizes}, which does not fit {n_devices} devices: set"
            " --config.mesh.data, fsdp and tensor so that their product is the number"
            " of devices. One of them may be -1, for what is left."
        )
    return filled
