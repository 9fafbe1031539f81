"""Row and column sums of squared gradients, with as few collectives as can be."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from ember_optax._mesh import AxisNames, Layout, Spec


class Sums(NamedTuple):
    """Sums of the squares of one table's gradient."""

    row: jax.Array  # [V], over the columns
    col: jax.Array  # [*D], over the rows


def sum_all_squares(
    grads: Sequence[jax.Array],
    axes: Sequence[int],
    dtypes: Sequence[DTypeLike],
    *,
    layout: Layout | None,
    names: AxisNames | None,
    rows_sharded: bool,
) -> list[Sums]:
    """Sums the squares of all gradients, wherever they are.

    Args:
      grads: gradients of the tables.
      axes: the axis of each that holds the tokens.
      dtypes: the dtype of the statistics of each; sums have the widest of them.
      layout: how tables are sharded on a mesh, where that is known.
      names: inside `jax.shard_map`, the mesh axes of rows and columns.
      rows_sharded: with a layout, leave row sums where the rows are.
    """
    dtype = jnp.float64 if jnp.float64 in dtypes else jnp.float32
    if names:
        return _sum_squares_of_shards(grads, axes, dtype, names)
    if layout:
        return _sum_squares_on_mesh(grads, axes, dtype, layout, rows_sharded)
    return [_sum_squares(g, axis, dtype) for g, axis in zip(grads, axes, strict=True)]


def _sum_squares(grad: jax.Array, axis: int, dtype: DTypeLike) -> Sums:
    """Sums the squares of a gradient over its columns and over its rows.

    Args:
      grad: gradient of a table, of any floating dtype.
      axis: the axis that holds the tokens.
      dtype: dtype to compute in.
    """
    columns = tuple(a for a in range(grad.ndim) if a != axis)
    row = jnp.sum(jnp.square(grad.astype(dtype)), axis=columns)
    grad = read_again(grad, row)
    return Sums(row, jnp.sum(jnp.square(grad.astype(dtype)), axis=axis))


def read_again(grad: jax.Array, sums: Any) -> jax.Array:
    """Returns a gradient for one more use, which shares nothing with earlier ones.

    XLA:CPU computes squares, or a float32 copy, once and stores all V x D for the next
    use; a barrier between two uses makes it read the gradient again. XLA:TPU stores
    nothing, and without a barrier takes the sums of rows and of columns in one pass.

    Args:
      grad: gradient of a table.
      sums: what was computed from it, to be finished before.
    """
    return jax.lax.platform_dependent(
        grad,
        sums,
        tpu=lambda grad, _: grad,
        default=lambda *both: jax.lax.optimization_barrier(both)[0],
    )


def _sum_squares_of_shards(
    shards: Sequence[jax.Array], axes: Sequence[int], dtype: DTypeLike, names: AxisNames
) -> list[Sums]:
    """Sums the squares of gradients inside `jax.shard_map`.

    Args:
      shards: this device's part of each gradient.
      axes: the axis of each that holds the tokens.
      dtype: dtype to compute in.
      names: mesh axes that rows, and that columns are sharded over.

    Returns:
      The sums that belong to this device's rows and columns.
    """
    sums = [_sum_squares(*table, dtype) for table in zip(shards, axes, strict=True)]
    rows = _add_up([s.row for s in sums], names.columns)
    cols = _add_up([s.col for s in sums], names.rows)
    return [Sums(*table) for table in zip(rows, cols, strict=True)]


def _sum_squares_on_mesh(
    grads: Sequence[jax.Array],
    axes: Sequence[int],
    dtype: DTypeLike,
    layout: Layout,
    rows_sharded: bool,
) -> list[Sums]:
    """Sums the squares of sharded gradients with one all-reduce for all tables.

    Sums of squares are additive: every device writes its own into a vector with a
    place for each row and column of each table, and these vectors are added up.

    Args:
      grads: gradients of the tables, in the order of the layout.
      axes: the axis of each that holds the tokens.
      dtype: dtype to compute in.
      layout: how the tables are sharded.
      rows_sharded: leave the row sums where the rows are.

    Returns:
      For each table its sums: `col` replicated, `row` replicated or sharded as rows.
    """
    used = layout.used()
    row_specs = [spec[a : a + 1] for spec, a in zip(layout.specs, axes, strict=True)]
    col_specs = [
        spec[:a] + spec[a + 1 :] for spec, a in zip(layout.specs, axes, strict=True)
    ]

    def local(*shards: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        sums = [_sum_squares(*table, dtype) for table in zip(shards, axes, strict=True)]
        rows, cols = [s.row for s in sums], [s.col for s in sums]
        cols = [
            _place(*c, layout) for c in zip(cols, col_specs, row_specs, strict=True)
        ]
        if rows_sharded:
            names = [sum(spec, ()) for spec in col_specs]
            rows = [_add_up([r], n)[0] for r, n in zip(rows, names, strict=True)]
            return rows, _add_up(cols, used)
        rows = [
            _place(*r, layout) for r in zip(rows, row_specs, col_specs, strict=True)
        ]
        return _add_up((rows, cols), used)

    row_out = [P(*spec) for spec in row_specs] if rows_sharded else P()
    rows, cols = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=tuple(P(*spec) for spec in layout.specs),
        out_specs=(row_out, P()),
    )(*grads)
    return [Sums(*table) for table in zip(rows, cols, strict=True)]


def _add_up(tree: Any, names: tuple[str, ...]) -> Any:
    """Adds arrays up over mesh axes, in one collective for all of them."""
    if not names:
        return tree
    packed, unpack = ravel_pytree(tree)
    return unpack(jax.lax.psum(packed, names))


def _place(x: jax.Array, spec: Spec, summed: Spec, layout: Layout) -> jax.Array:
    """Writes this device's part of a statistic into zeros of its full shape.

    Args:
      x: part of the statistic.
      spec: mesh axes that the statistic's own dimensions are sharded over.
      summed: mesh axes that the dimensions summed over are sharded over.
      layout: of all tables.

    Returns:
      The array that gives the full statistic when added up over `layout.used()`.
    """
    for name in layout.used():
        if name not in sum(spec + summed, ()):
            # This axis holds copies of the table, of which one counts.
            x = jnp.where(jax.lax.axis_index(name) == 0, x, 0)
    sizes = [jax.lax.axis_size(names) if names else 1 for names in spec]
    start = [
        jax.lax.axis_index(names) * n if names else 0
        for names, n in zip(spec, x.shape, strict=True)
    ]
    shape = [size * n for size, n in zip(sizes, x.shape, strict=True)]
    return jax.lax.dynamic_update_slice(jnp.zeros(shape, x.dtype), x, start)
