"""Row and column sums of squared gradients, with as few collectives as can be."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from ember_optax._mesh import AxisNames, Layout, Spec, constrain, find_layout


class Sums(NamedTuple):
    """Sums of the squares of one table's gradient."""

    row: jax.Array  # [V], over the columns
    col: jax.Array  # [*D], over the rows


class Reducer(Protocol):
    """Sums squares wherever the tables are, and keeps statistics where they belong."""

    def sum_squares(
        self, grads: Mapping[str, jax.Array], axes: Mapping[str, int], dtype: DTypeLike
    ) -> dict[str, Sums]:
        """Returns the sums of the squares of each gradient, by path.

        Args:
          grads: gradient of each table, of any floating dtype.
          axes: the axis of each that holds the tokens.
          dtype: dtype of the sums.
        """
        ...

    def constrain(
        self,
        statistics: dict[str, Any],
        tables: Mapping[str, jax.Array],
        axes: Mapping[str, int],
    ) -> dict[str, Any]:
        """Gives the statistics the same sharding before and after a step.

        Args:
          statistics: `TableMoments` or `Sums` by path.
          tables: the tables or their gradients.
          axes: the axis of each that holds the tokens.
        """
        ...


class InShardMap(NamedTuple):
    """The reducer of updates inside `jax.shard_map`, where each device has its part.

    Sums and statistics are those of the device's own rows and columns.
    """

    names: AxisNames

    def sum_squares(
        self, grads: Mapping[str, jax.Array], axes: Mapping[str, int], dtype: DTypeLike
    ) -> dict[str, Sums]:
        self.names.check_bound()
        sums = _sum_all(grads, axes, dtype)
        rows = _add_up({path: s.row for path, s in sums.items()}, self.names.columns)
        cols = _add_up({path: s.col for path, s in sums.items()}, self.names.rows)
        return {path: Sums(rows[path], cols[path]) for path in sums}

    def constrain(
        self,
        statistics: dict[str, Any],
        tables: Mapping[str, jax.Array],
        axes: Mapping[str, int],
    ) -> dict[str, Any]:
        del tables, axes
        return statistics


class OnMesh(NamedTuple):
    """The reducer of one device, and of a mesh where it is known how tables lie."""

    param_shardings: Any  # as the user gave them
    rows_sharded: bool  # `row` lies as the rows do; else it is replicated

    def sum_squares(
        self, grads: Mapping[str, jax.Array], axes: Mapping[str, int], dtype: DTypeLike
    ) -> dict[str, Sums]:
        layout = self._layout(grads)
        if layout is None:
            # Once: both the statistics and their roots need the sums.
            return self.constrain(_sum_all(grads, axes, dtype), grads, axes)
        return _sum_on_mesh(grads, axes, dtype, layout, self.rows_sharded)

    def constrain(
        self,
        statistics: dict[str, Any],
        tables: Mapping[str, jax.Array],
        axes: Mapping[str, int],
    ) -> dict[str, Any]:
        layout = self._layout(tables)
        constrained = {}
        for path, (row, col) in statistics.items():
            if not self.rows_sharded:
                row = constrain(row, P(), layout)
            elif layout:
                row = constrain(row, P(layout.specs[path][axes[path]]), layout)
            constrained[path] = statistics[path]._replace(
                row=row, col=constrain(col, P(), layout)
            )
        return constrained

    def _layout(self, tables: Mapping[str, jax.Array]) -> Layout | None:
        return find_layout(tables, self.param_shardings, rows_sharded=self.rows_sharded)


def read_again(grad: jax.Array, before: Any) -> jax.Array:
    """Returns a gradient for one more use, which shares nothing with earlier ones.

    XLA:CPU computes squares, or a float32 copy, once and stores all V x D for the next
    use; a barrier between two uses makes it read the gradient again. Elsewhere nothing
    is stored, unless a barrier wants its operand in memory; and XLA:TPU takes the sums
    of rows and of columns in one pass.

    Args:
      grad: gradient of a table.
      before: what was computed from it, to be finished before.
    """
    return jax.lax.platform_dependent(
        grad,
        before,
        cpu=lambda *both: jax.lax.optimization_barrier(both)[0],
        default=lambda grad, _: grad,
    )


def sum_squares(grad: jax.Array, axis: int, dtype: DTypeLike) -> Sums:
    """Sums the squares of a gradient over its columns and over its rows.

    Args:
      grad: gradient of a table, or a device's part of one, of any floating dtype.
      axis: the axis that holds the tokens.
      dtype: dtype to compute in.
    """
    columns = tuple(a for a in range(grad.ndim) if a != axis)
    row = jnp.sum(jnp.square(grad.astype(dtype)), axis=columns)
    grad = read_again(grad, row)
    return Sums(row, jnp.sum(jnp.square(grad.astype(dtype)), axis=axis))


def _sum_all(
    grads: Mapping[str, jax.Array], axes: Mapping[str, int], dtype: DTypeLike
) -> dict[str, Sums]:
    return {path: sum_squares(grad, axes[path], dtype) for path, grad in grads.items()}


def _sum_on_mesh(
    grads: Mapping[str, jax.Array],
    axes: Mapping[str, int],
    dtype: DTypeLike,
    layout: Layout,
    rows_sharded: bool,
) -> dict[str, Sums]:
    """Sums the squares of sharded gradients with one all-reduce for all tables.

    Sums of squares are additive: every device writes its own into a vector with a
    place for each row and column of each table, and these vectors are added up.

    Args:
      grads: gradient of each table.
      axes: the axis of each that holds the tokens.
      dtype: dtype to compute in.
      layout: how the tables are sharded.
      rows_sharded: leave the row sums where the rows are.

    Returns:
      For each table its sums: `col` replicated, `row` replicated or sharded as rows.
    """
    used = layout.used()
    row_specs = {path: layout.specs[path][a : a + 1] for path, a in axes.items()}
    col_specs = {
        path: layout.specs[path][:a] + layout.specs[path][a + 1 :]
        for path, a in axes.items()
    }

    def local(shards: dict[str, jax.Array]) -> tuple[dict, dict]:
        sums = _sum_all(shards, axes, dtype)
        cols = {
            path: _place(s.col, col_specs[path], row_specs[path], layout)
            for path, s in sums.items()
        }
        if rows_sharded:
            rows = {
                path: _add_up(s.row, sum(col_specs[path], ()))
                for path, s in sums.items()
            }
            return rows, _add_up(cols, used)
        rows = {
            path: _place(s.row, row_specs[path], col_specs[path], layout)
            for path, s in sums.items()
        }
        return _add_up((rows, cols), used)

    by_rows = {path: P(*spec) for path, spec in row_specs.items()}
    rows, cols = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=({path: P(*spec) for path, spec in layout.specs.items()},),
        out_specs=(by_rows if rows_sharded else P(), P()),
    )(dict(grads))
    return {path: Sums(rows[path], cols[path]) for path in grads}


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
