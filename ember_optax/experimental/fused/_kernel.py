"""The mathematics of a fused step, as a kernel for TPU and in plain JAX."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ember_optax import _rule
from ember_optax._reduce import read_again, sum_squares

# A block that is as large as this takes 8 times its bytes on the chip: theta twice and
# the gradient, each with the block after it, and what does not fit into registers.
_BLOCK_SIZE = 2**19
_MOST_ROWS = 1024
_LANES = 128
_ON_CHIP_BYTES = 60 * 2**20  # v5p has 64 MiB, others 128 MiB


class Numbers(NamedTuple):
    """What a step multiplies with, in the dtype of the state."""

    b2: jax.Array
    rate: jax.Array  # 1 - b2
    eps: jax.Array
    learning_rate: jax.Array
    weight_decay: jax.Array
    bound: jax.Array  # of an update, in roots of mean square of its row


class Stepped(NamedTuple):
    """What one pass over table and gradient gives."""

    table: jax.Array
    row: jax.Array  # [V], after the step
    col_sums: jax.Array  # [D], of the squared gradient


def column_root(col: jax.Array, correction: jax.Array) -> jax.Array:
    """Returns the root of the factor of each column, as known before the step.

    Args:
      col: [D], column statistic before the step.
      correction: bias correction of the row statistic after the step; that of `col`
        cancels in col / mean(col).
    """
    total = jnp.sum(col)
    factor = jnp.where(total == 0, 1, _rule.share(col, total) * col.size)
    # A column without a statistic may have a gradient of any size: not for it is eps.
    return _rule.root(factor / correction, jnp.zeros_like(correction), jnp.array(False))


def plain_step(
    table: jax.Array,
    grad: jax.Array,
    row: jax.Array,
    col_root: jax.Array,
    numbers: Numbers,
    *,
    axis: int,
    limit: float,
) -> Stepped:
    """Takes a step in plain JAX, which reads the gradient two or three times.

    Args:
      table: [V, D], or [D, V] with axis 1.
      grad: likewise.
      row: [V], row statistic before the step.
      col_root: [D], of :func:`column_root`.
      numbers: hyperparameters.
      axis: the axis that holds the tokens.
      limit: of a sum of squares that leaves statistics finite.
    """
    sums = sum_squares(grad, axis, row.dtype)
    grad = read_again(grad, sums)
    rows = _row_step(row, sums.row, col_root.size, numbers, limit)
    row_root, bound = (jnp.expand_dims(x, 1 - axis) for x in rows[1:])
    col_root = jnp.expand_dims(col_root, axis)
    table = _descend(table, grad, row_root, col_root, bound, numbers)
    return Stepped(table, rows[0], sums.col)


def kernel_step(
    table: jax.Array,
    grad: jax.Array,
    row: jax.Array,
    col_root: jax.Array,
    numbers: Numbers,
    *,
    axis: int,
    limit: float,
) -> Stepped:
    """Takes the step of :func:`plain_step` in one pass, in place, on a TPU."""
    n_rows, n_columns = row.size, col_root.size
    rows = _LANES * max(1, min(_MOST_ROWS, _BLOCK_SIZE // n_columns) // _LANES)
    rows = min(rows, n_rows)
    n_blocks = pl.cdiv(n_rows, rows)
    # A v5p has two cores, each of which takes half of the blocks.
    n_halves = min(2, n_blocks)
    in_half = pl.cdiv(n_blocks, n_halves)

    def along(half: Any, i: Any) -> Any:
        # The last half may be a block short. It then stays at its last one.
        return jnp.minimum(half * in_half + i, n_blocks - 1)

    if axis == 0:
        tiles = pl.BlockSpec((rows, n_columns), lambda *at: (along(*at), 0))
    else:
        tiles = pl.BlockSpec((n_columns, rows), lambda *at: (0, along(*at)))
    row_tiles = pl.BlockSpec((1, rows), lambda *at: (0, along(*at)))
    columns = pl.BlockSpec((1, n_columns), lambda *_: (0, 0))
    sums = pl.BlockSpec((None, 1, n_columns), lambda half, _: (half, 0, 0))

    operands = (
        jnp.stack(numbers),
        row.reshape(1, n_rows),
        col_root.reshape(1, n_columns),
        table,
        grad,
    )
    kind = jax.typeof(table)
    # What varies over a mesh inside jax.shard_map; JAX 0.9 calls it vma.
    varying = "manual_axis_type" if hasattr(kind, "manual_axis_type") else "vma"
    like = partial(jax.ShapeDtypeStruct, **{varying: getattr(kind, varying)})
    outputs = (
        like((1, n_rows), row.dtype),
        like((n_halves, 1, n_columns), row.dtype),
        like(table.shape, table.dtype),
    )
    new_row, col_sums, table = pl.pallas_call(
        partial(_kernel, axis=axis, limit=limit, n_rows=n_rows, n_blocks=n_blocks),
        grid=(n_halves, in_half),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            *(row_tiles, columns, tiles, tiles),
        ],
        out_specs=(row_tiles, sums, tiles),
        out_shape=outputs,
        input_output_aliases={1: 0, 3: 2},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=_ON_CHIP_BYTES,
        ),
        # XLA counts nothing in a kernel by itself.
        cost_estimate=pl.CostEstimate(
            flops=12 * table.size,
            transcendentals=n_rows,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in operands + outputs),
        ),
    )(*operands)
    return Stepped(table, new_row.reshape(n_rows), col_sums.sum((0, 1)))


def _kernel(
    numbers: Any,
    row: Any,
    col_root: Any,
    table: Any,
    grad: Any,
    new_row: Any,
    col_sums: Any,
    new_table: Any,
    *,
    axis: int,
    limit: float,
    n_rows: int,
    n_blocks: int,
) -> None:
    """Takes the step on one block of rows, all arguments being references to it."""
    half, i = pl.program_id(0), pl.program_id(1)
    block = half * pl.num_programs(1) + i

    @pl.when(i == 0)
    def _() -> None:
        col_sums[...] = jnp.zeros_like(col_sums)

    @pl.when(block < n_blocks)
    def _() -> None:
        hyper = Numbers(*(numbers[k] for k in range(len(Numbers._fields))))
        squares = jnp.square(grad[...].astype(row.dtype))
        index = jax.lax.broadcasted_iota(jnp.int32, squares.shape, axis)
        # Beyond the last row the block holds whatever was in memory.
        squares = jnp.where(block * row.size + index < n_rows, squares, 0)
        sums = jnp.sum(squares, axis=axis, keepdims=True)
        col_sums[...] += _turn(sums, 1 - axis)
        sums = _turn(jnp.sum(squares, axis=1 - axis, keepdims=True), axis)
        new_row[...], row_root, bound = _row_step(
            row[...], sums, col_root.size, hyper, limit
        )
        new_table[...] = _descend(
            table[...],
            grad[...],
            _turn(row_root, axis),
            _turn(col_root[...], 1 - axis),
            _turn(bound, axis),
            hyper,
        )


def _row_step(
    row: jax.Array, sums: jax.Array, n_columns: int, numbers: Numbers, limit: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the row statistic after the step, the roots to divide rows by, bounds."""
    overflow = sums > limit
    mean = sums / n_columns
    gain = numbers.rate * jnp.where(overflow, 0, mean)
    row = _rule.move(row, gain, numbers.b2, numbers.rate)
    root = _rule.root(row, numbers.eps, overflow)
    return row, root, numbers.bound * jnp.sqrt(mean) / root


def _turn(x: jax.Array, axis: int) -> jax.Array:
    """Turns a statistic between [1, N], as it is stored, and where N is that axis."""
    return x.T if axis == 0 else x


def _descend(
    table: jax.Array,
    grad: jax.Array,
    row_root: jax.Array,
    col_root: jax.Array,
    bound: jax.Array,
    numbers: Numbers,
) -> jax.Array:
    """Returns the table after the step, computed in the dtype of the statistics."""
    dtype = row_root.dtype
    theta = table.astype(dtype)
    update = grad.astype(dtype) / (row_root * col_root + numbers.eps)
    update = jnp.clip(update, -bound, bound)
    theta -= numbers.learning_rate * (update + numbers.weight_decay * theta)
    return theta.astype(table.dtype)
