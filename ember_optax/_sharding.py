"""Where tables and their state lie on a device mesh."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ember_optax._paths import named_leaves

Spec = tuple[tuple[str, ...], ...]
"""Names of the mesh axes that each dimension of an array is sharded over."""


AxisName = str | tuple[str, ...] | None


class AxisNames(NamedTuple):
    """Mesh axes of the tables inside `jax.shard_map`, for all tables the same."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def of(cls, names: tuple[AxisName, AxisName]) -> "AxisNames":
        """Reads the entries of a PartitionSpec of two dimensions."""
        return cls(*_axes(P(*names), 2))


class Layout(NamedTuple):
    """Tables on a mesh, all of them or none."""

    mesh: Any  # jax.sharding.Mesh or AbstractMesh
    specs: tuple[Spec, ...]  # one for each table

    def used(self) -> tuple[str, ...]:
        """Mesh axes that any table is sharded over, in the order of the mesh."""
        names = {name for spec in self.specs for axes in spec for name in axes}
        return tuple(name for name in self.mesh.axis_names if name in names)


def find_layout(
    leaves: Sequence[tuple[str, Any]], param_shardings: Any
) -> Layout | None:
    """Tells how tables are sharded, where that is known while tracing.

    Args:
      leaves: (path, array) of every table.
      param_shardings: shardings of the parameters as the user gave them, or None. They
        are not needed on Explicit axes, where types carry the sharding.

    Returns:
      The layout, or None where nothing is sharded or XLA alone knows how.

    Raises:
      ValueError: `param_shardings` has none for a table.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Manual in mesh.axis_types:
        return None
    if param_shardings is not None:
        shardings = dict(named_leaves(param_shardings))
        given = [sharding_of(path, leaf, shardings) for path, leaf in leaves]
        meshes = [s.mesh for s in given if isinstance(s, NamedSharding)]
        mesh = meshes[0] if meshes else mesh
        specs = [s.spec if isinstance(s, NamedSharding) else s for s in given]
    elif mesh.are_all_axes_explicit:
        specs = [jax.typeof(leaf).sharding.spec for _, leaf in leaves]
    else:
        return None
    layout = Layout(mesh, tuple(map(_axes, specs, [x.ndim for _, x in leaves])))
    return layout if layout.used() else None


def pin(x: jax.Array, spec: P, layout: Layout | None) -> jax.Array:
    """Pins the sharding of an array, on Auto and on Explicit axes.

    With neither a layout nor a mesh of `jax.set_mesh` in context this does nothing, nor
    does it inside `jax.shard_map`, where arrays are local.

    Args:
      x: array of any shape, concrete or traced.
      spec: how to shard it.
      layout: has the mesh; None for the mesh in context.
    """
    mesh = layout.mesh if layout else jax.sharding.get_abstract_mesh()
    axis_types = set(mesh.axis_types)
    if AxisType.Manual in axis_types:
        return x
    sharding = NamedSharding(mesh, spec) if layout else spec
    # Each function is silently wrong or an error on the other kind of axis: reshard
    # ignores Auto axes, with_sharding_constraint only asserts on Explicit ones.
    if AxisType.Explicit in axis_types:
        x = jax.reshard(x, sharding)
    if AxisType.Auto in axis_types:
        x = jax.lax.with_sharding_constraint(x, sharding)
    return x


def sharding_of(path: str, leaf: Any, shardings: dict[str, Any]) -> Any:
    """Returns the sharding of a parameter.

    Raises:
      ValueError: there is none, or it has more dimensions than the parameter.
    """
    if path not in shardings:
        known = ", ".join(map(repr, shardings)) or "none"
        raise ValueError(
            f"param_shardings has no sharding for {path!r}, but for {known}. Pass a"
            " tree of shardings with the structure of the parameters."
        )
    sharding = shardings[path]
    spec = sharding.spec if isinstance(sharding, NamedSharding) else sharding
    if not isinstance(spec, P) or len(spec) > leaf.ndim:
        raise ValueError(
            f"param_shardings has {sharding} for {path!r} of shape {leaf.shape}, but"
            " a NamedSharding of at most as many dimensions is needed."
        )
    return sharding


def _axes(spec: P, ndim: int) -> Spec:
    """Returns the mesh axes of each dimension, as tuples."""
    entries = tuple(spec) + (None,) * (ndim - len(spec))
    return tuple((e,) if isinstance(e, str) else tuple(e or ()) for e in entries)
