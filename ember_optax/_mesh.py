"""How tables lie on a device mesh, and arrays that are constrained to it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ember_optax._paths import by_path, listed, quoted

Spec = tuple[tuple[str, ...], ...]
"""Names of the mesh axes that each dimension of an array is sharded over."""

AxisName = str | tuple[str, ...] | None


class AxisNames(NamedTuple):
    """Mesh axes that all tables are sharded over inside `jax.shard_map`."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: tuple[AxisName, AxisName] | None) -> "AxisNames":
        """Reads the entries of a PartitionSpec of two dimensions."""
        return cls(*_entries(P(*names), 2)) if names else cls()

    def check_bound(self) -> None:
        """Raises ValueError for names that are not manual axes where this is called."""
        for name in self.rows + self.columns:
            try:
                jax.lax.axis_size(name)
            except NameError as error:
                raise ValueError(
                    f"axis_names has {name!r}, but update is not inside a jax.shard_map"
                    " over that axis: name the axes that it is over, and outside of"
                    " one none."
                ) from error


class Layout(NamedTuple):
    """Tables on a mesh, all of them or none."""

    mesh: Any  # jax.sharding.Mesh or AbstractMesh
    specs: dict[str, Spec]  # of each table, by path

    def used(self) -> tuple[str, ...]:
        """Mesh axes that any table is sharded over, in the order of the mesh."""
        names = {n for spec in self.specs.values() for axes in spec for n in axes}
        return tuple(name for name in self.mesh.axis_names if name in names)


def find_layout(
    tables: Mapping[str, Any], param_shardings: Any, *, rows_sharded: bool
) -> Layout | None:
    """Tells how tables are sharded, where that is known while tracing.

    Args:
      tables: array by path.
      param_shardings: shardings of the parameters as the user gave them, or None. They
        are not needed on Explicit axes, where types carry the sharding.
      rows_sharded: whether the layout is needed to shard the state.

    Returns:
      The layout, or None where nothing is sharded or XLA alone knows how.

    Raises:
      ValueError: `param_shardings` does not fit the tables or the mesh, or is missing
        where it is needed.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not tables or AxisType.Manual in mesh.axis_types:
        return None
    if rows_sharded and len(set(mesh.axis_types)) > 1:
        raise ValueError(
            f"row_state is 'sharded' on {mesh}, but rows can be constrained only where"
            " all axes are Auto or all are Explicit: use row_state='replicated'."
        )
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
    elif rows_sharded and mesh.size > 1:
        raise ValueError(
            "row_state is 'sharded', but on Auto axes only XLA knows where the rows of"
            f" {quoted(next(iter(tables)))} lie: pass param_shardings, with a"
            " NamedSharding for each table."
        )
    else:
        return None
    layout = Layout(
        mesh, {path: _entries(specs[path], x.ndim) for path, x in tables.items()}
    )
    return layout if layout.used() else None


def constrain(x: jax.Array, spec: P, layout: Layout | None) -> jax.Array:
    """Constrains the sharding of an array, on Auto and on Explicit axes.

    With neither a layout nor a mesh of `jax.set_mesh` in context this does nothing, nor
    does it over the axes of a `jax.shard_map`, where arrays are local.

    Args:
      x: array of any shape, concrete or traced.
      spec: how to shard it.
      layout: has the mesh; None for the mesh in context.
    """
    mesh = layout.mesh if layout else jax.sharding.get_abstract_mesh()
    axis_types = set(mesh.axis_types)
    sharding = NamedSharding(mesh, spec) if layout else spec
    # Each function is silently wrong or an error on the other kind of axis: reshard
    # ignores Auto axes, with_sharding_constraint only asserts on Explicit ones.
    if AxisType.Explicit in axis_types:
        x = jax.reshard(x, sharding)
    if AxisType.Auto in axis_types:
        x = jax.lax.with_sharding_constraint(x, sharding)
    return x


def find_shardings(
    params: Mapping[str, Any], param_shardings: Any
) -> dict[str, NamedSharding]:
    """Returns the sharding of each parameter, by path.

    Args:
      params: array, or anything with a shape, by path.
      param_shardings: tree of shardings with the structure of the parameters, or a
        prefix of it: a sharding in the place of a subtree is that of all its leaves.

    Raises:
      ValueError: there is none for a parameter, or it does not fit.
    """
    given = by_path(param_shardings)
    return {path: _sharding_of(path, x, given) for path, x in params.items()}


def common_mesh(shardings: Mapping[str, NamedSharding]) -> Any:
    """Returns the mesh of the shardings of all parameters.

    Raises:
      ValueError: there are two.
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
    segments = path.split("/")
    prefixes = ("/".join(segments[:n]) for n in range(len(segments), -1, -1))
    nearest = next((prefix for prefix in prefixes if prefix in given), None)
    if nearest is None:
        raise ValueError(
            f"param_shardings has no sharding for {quoted(path)}, but for"
            f" {listed(given, none='none')}. Pass a tree of shardings with the"
            " structure of the parameters, or a prefix of it."
        )
    sharding = given[nearest]
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
    """Returns the mesh axes of each dimension, as tuples."""
    entries = tuple(spec) + (None,) * (ndim - len(spec))
    return tuple((e,) if isinstance(e, str) else tuple(e or ()) for e in entries)
