"""Sharding layout of token tables, and sharding constraints on arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ember_optax._paths import by_path, listed, nearest, quoted

Spec = tuple[tuple[str, ...], ...]
"""Names of the mesh axes that each dimension of an array is sharded over."""

AxisName = str | tuple[str, ...] | None


class AxisNames(NamedTuple):
    """Mesh axes that all tables are sharded over inside `jax.shard_map`."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def from_partition_spec(cls, names: tuple[AxisName, AxisName]) -> "AxisNames":
        """Reads the two entries of a PartitionSpec."""
        return cls(*_entries(P(*names), 2))

    def sizes(self) -> tuple[int, int]:
        """Numbers of shards of the rows and of the columns."""
        rows = jax.lax.axis_size(self.rows) if self.rows else 1
        return rows, jax.lax.axis_size(self.columns) if self.columns else 1

    def check_bound(self) -> None:
        """Raises ValueError for names that are not manual axes where this is called."""
        for name in self.rows + self.columns:
            try:
                jax.lax.axis_size(name)
            except NameError as error:
                raise ValueError(
                    f"axis_names has {name!r}, but update is not inside a jax.shard_map"
                    " over that axis. Pass the axes that the shard_map maps over, or"
                    " None outside shard_map."
                ) from error


class Layout(NamedTuple):
    """Shardings of all tables on a mesh."""

    mesh: Any  # jax.sharding.Mesh or AbstractMesh
    specs: dict[str, Spec]  # by path

    def sharded_axes(self) -> tuple[str, ...]:
        """Mesh axes that any table is sharded over, in the order of the mesh."""
        names = {n for spec in self.specs.values() for axes in spec for n in axes}
        return tuple(name for name in self.mesh.axis_names if name in names)


def find_layout(tables: Mapping[str, Any], param_shardings: Any) -> Layout | None:
    """Finds the sharding of tables, where it is known while tracing.

    Args:
      tables: array by path.
      param_shardings: shardings of the parameters as the user gave them, or None. They
        are not needed on Explicit axes, where types carry the sharding.

    Returns:
      The layout, or None where nothing is sharded or only XLA knows the shardings.

    Raises:
      ValueError: `param_shardings` does not fit the tables or the mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not tables or AxisType.Manual in mesh.axis_types:
        return None
    if mesh.are_all_axes_explicit:
        specs = {path: jax.typeof(x).sharding.spec for path, x in tables.items()}
    elif param_shardings is not None:
        shardings = find_shardings(tables, param_shardings)
        common = common_mesh(shardings)
        if not mesh.empty and common.abstract_mesh != mesh:
            raise ValueError(
                f"param_shardings has {common} for {quoted(next(iter(tables)))}, but"
                f" the mesh in context is {mesh}: pass the same to jax.set_mesh."
            )
        mesh = common
        specs = {path: sharding.spec for path, sharding in shardings.items()}
    else:
        return None
    layout = Layout(
        mesh, {path: _entries(specs[path], x.ndim) for path, x in tables.items()}
    )
    return layout if layout.sharded_axes() else None


def replicate(tree: Any, layout: Layout | None) -> Any:
    """Constrains all arrays of a tree to be replicated."""
    return jax.tree.map(lambda x: constrain(x, P(), layout), tree)


def constrain(x: jax.Array, spec: P, layout: Layout | None) -> jax.Array:
    """Constrains the sharding of an array, on Auto and on Explicit axes.

    Without a layout and without a mesh of `jax.set_mesh` in context this does nothing.
    Over the axes of a `jax.shard_map`, where arrays are local, it does nothing either.

    Args:
      x: array of any shape, concrete or traced.
      spec: sharding to constrain it to.
      layout: layout with the mesh; None for the mesh in context.
    """
    mesh = layout.mesh if layout else jax.sharding.get_abstract_mesh()
    axis_types = set(mesh.axis_types)
    sharding = NamedSharding(mesh, spec) if layout else spec
    # jax.reshard ignores Auto axes, and with_sharding_constraint only asserts on
    # Explicit ones, so each kind of axis needs its own function.
    if AxisType.Explicit in axis_types:
        x = jax.reshard(x, sharding)
    if AxisType.Auto in axis_types:
        x = jax.lax.with_sharding_constraint(x, sharding)
    return x


def find_shardings(
    params: Mapping[str, Any], param_shardings: Any
) -> dict[str, NamedSharding]:
    """Finds the sharding of each parameter, by path.

    Args:
      params: array, or anything with a shape, by path.
      param_shardings: tree of shardings with the structure of the parameters, or a
        prefix of it: a sharding in the place of a subtree is that of all its leaves.

    Raises:
      ValueError: a parameter has no sharding, or one that does not fit.
    """
    given = by_path(param_shardings)
    return {path: _sharding_of(path, x, given) for path, x in params.items()}


def common_mesh(shardings: Mapping[str, NamedSharding]) -> Any:
    """Finds the mesh that all shardings share.

    Raises:
      ValueError: they have more than one mesh.
    """
    (first, one), *others = shardings.items()
    for path, other in others:
        if other.mesh != one.mesh:
            raise ValueError(
                f"param_shardings has {one.mesh} for {quoted(first)}, but {other.mesh}"
                f" for {quoted(path)}: put all parameters on one mesh."
            )
    return one.mesh


def _sharding_of(path: str, leaf: Any, given: Mapping[str, Any]) -> NamedSharding:
    prefix = nearest(path, given)
    if prefix is None:
        raise ValueError(
            f"param_shardings has no sharding for {quoted(path)}, but for"
            f" {listed(given, none='none')}. Pass a tree of shardings with the"
            " structure of the parameters, or a prefix of it."
        )
    sharding = given[prefix]
    found = f"param_shardings has {sharding} for {quoted(path)} of shape {leaf.shape}"
    if not isinstance(sharding, NamedSharding):
        raise ValueError(
            f"{found}, but a NamedSharding is needed, which has the mesh:"
            " NamedSharding(mesh, spec)."
        )
    if len(sharding.spec) > len(leaf.shape):
        raise ValueError(
            f"{found}, but at most {len(leaf.shape)} dimensions can be sharded: shorten"
            " the spec."
        )
    try:
        sharding.shard_shape(leaf.shape)
    except ValueError as error:
        raise ValueError(
            f"{found}, but all shards must have the same size: pad the parameter, or"
            " shard another axis of it."
        ) from error
    return sharding


def _entries(spec: P, ndim: int) -> Spec:
    """Lists the mesh axes of each dimension, as tuples."""
    entries = tuple(spec) + (None,) * (ndim - len(spec))
    return tuple((e,) if isinstance(e, str) else tuple(e or ()) for e in entries)
