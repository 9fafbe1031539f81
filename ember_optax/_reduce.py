"""Mean squares of gradients over rows and columns, with one collective for all tables.

On one device and inside `jax.shard_map` a table is one local array. On a mesh whose
layout is known, every device sums its own shard and one all-reduce adds everything up.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from ember_optax._mesh import AxisNames, Layout, Spec
from ember_optax._rule import MeanSquares

# Row sums and column sums of the squares of one table.
Sums = tuple[jax.Array, jax.Array]


def mean_squares(
    grads: Mapping[str, jax.Array],
    axes: Mapping[str, int],
    dtype: DTypeLike,
    layout: Layout | None,
) -> dict[str, MeanSquares]:
    """Averages the squares of each gradient over its columns and over its rows.

    Args:
      grads: gradient of each table by path, any floating dtype.
      axes: the axis of each that holds the tokens.
      dtype: dtype to compute in.
      layout: sharding of the tables, None on one device or where only XLA knows it.

    Returns:
      The means of each table, replicated where a layout is given.
    """
    sums = (
        _sum_on_mesh(grads, axes, dtype, layout)
        if layout
        else _sum_all(grads, axes, dtype)
    )
    sizes = {path: (g.shape[axes[path]], g.size) for path, g in grads.items()}
    return _means(sums, sizes)


def mean_squares_in_shard_map(
    grads: Mapping[str, jax.Array],
    axes: Mapping[str, int],
    dtype: DTypeLike,
    names: AxisNames,
) -> dict[str, MeanSquares]:
    """Averages inside `jax.shard_map`: means of the device's own rows and columns."""
    names.check_bound()
    sums = _sum_all(grads, axes, dtype)
    rows = _psum_packed({path: row for path, (row, _) in sums.items()}, names.columns)
    cols = _psum_packed({path: col for path, (_, col) in sums.items()}, names.rows)
    n_row_shards, n_column_shards = names.sizes()
    sizes = {}
    for path, grad in grads.items():
        n_rows = grad.shape[axes[path]] * n_row_shards
        sizes[path] = n_rows, grad.size * n_row_shards * n_column_shards
    return _means({path: (rows[path], cols[path]) for path in grads}, sizes)


def cpu_fusion_barrier(grad: jax.Array, after: Any) -> jax.Array:
    """Makes XLA:CPU read a gradient again instead of storing what it computed from it.

    XLA:CPU computes the squares of a gradient, or its float32 copy, once for several
    uses, and stores all V x D of them. With a barrier between two uses it reads the
    gradient again. Other backends store nothing here; a barrier would force them to
    store its operand, and XLA:TPU takes both sums in one pass.

    Args:
      grad: gradient of a table.
      after: results of the earlier use.
    """
    return jax.lax.platform_dependent(
        grad,
        after,
        cpu=lambda *operands: jax.lax.optimization_barrier(operands)[0],
        default=lambda grad, _: grad,
    )


def _sum_squares(grad: jax.Array, axis: int, dtype: DTypeLike) -> Sums:
    columns = tuple(a for a in range(grad.ndim) if a != axis)
    row = jnp.sum(jnp.square(grad.astype(dtype)), axis=columns)
    grad = cpu_fusion_barrier(grad, row)
    return row, jnp.sum(jnp.square(grad.astype(dtype)), axis=axis)


def _sum_all(
    grads: Mapping[str, jax.Array], axes: Mapping[str, int], dtype: DTypeLike
) -> dict[str, Sums]:
    return {path: _sum_squares(grad, axes[path], dtype) for path, grad in grads.items()}


def _means(
    sums: Mapping[str, Sums], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, MeanSquares]:
    """Divides sums by global sizes: rows, and entries of the table."""
    means = {}
    for path, (row, col) in sums.items():
        n_rows, size = sizes[path]
        means[path] = MeanSquares(row / (size // n_rows), col / n_rows)
    return means


def _sum_on_mesh(
    grads: Mapping[str, jax.Array],
    axes: Mapping[str, int],
    dtype: DTypeLike,
    layout: Layout,
) -> dict[str, Sums]:
    """Sums the squares of sharded gradients with one all-reduce for all tables.

    Sums of squares are additive: every device writes its own into zeros of the full
    shapes, and these vectors are added up. The results are replicated.
    """

    def local(shards: dict[str, jax.Array]) -> dict[str, Sums]:
        scattered = {}
        for path, (row, col) in _sum_all(shards, axes, dtype).items():
            spec, axis = layout.specs[path], axes[path]
            rows, columns = spec[axis : axis + 1], spec[:axis] + spec[axis + 1 :]
            scattered[path] = (
                _scatter_to_global(row, rows, columns, layout),
                _scatter_to_global(col, columns, rows, layout),
            )
        return _psum_packed(scattered, layout.sharded_axes())

    specs = {path: P(*spec) for path, spec in layout.specs.items()}
    summed = jax.shard_map(local, mesh=layout.mesh, in_specs=(specs,), out_specs=P())
    return summed(dict(grads))


def _psum_packed(tree: Any, names: tuple[str, ...]) -> Any:
    """Adds arrays up over mesh axes, in one collective for all of them."""
    if not names:
        return tree
    packed, unpack = ravel_pytree(tree)
    return unpack(jax.lax.psum(packed, names))


def _scatter_to_global(
    x: jax.Array, spec: Spec, summed: Spec, layout: Layout
) -> jax.Array:
    """Writes this device's part of a sum into zeros of its full shape.

    Args:
      x: part of the row sums or of the column sums.
      spec: mesh axes that the dimensions of `x` are sharded over.
      summed: mesh axes that the dimensions summed over are sharded over.
      layout: layout of all tables.

    Returns:
      An array that gives the full sums when added up over `layout.sharded_axes()`.
    """
    for name in layout.sharded_axes():
        if name not in sum(spec + summed, ()):
            # The table is replicated along this axis: count one copy of it.
            x = jnp.where(jax.lax.axis_index(name) == 0, x, 0)
    sizes = [jax.lax.axis_size(names) if names else 1 for names in spec]
    start = [
        jax.lax.axis_index(names) * n if names else 0
        for names, n in zip(spec, x.shape, strict=True)
    ]
    shape = [size * n for size, n in zip(sizes, x.shape, strict=True)]
    return jax.lax.dynamic_update_slice(jnp.zeros(shape, x.dtype), x, start)
