"""A variant of Ember whose step reads gradient and table once, as SGD does.

The column factor is that of the step before: an average over all V rows, which moves
little in one step. A row's own statistic is complete once the row has been read. So
one pass takes the statistics and moves the table, where :func:`ember_optax.ember` reads
the gradient twice.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ember_optax import _checks, _decay, _rule
from ember_optax._axes import check_vocab_axis, token_axes
from ember_optax._decay import Scalar
from ember_optax._paths import by_path
from ember_optax.experimental.fused import _kernel
from ember_optax.experimental.fused._kernel import Numbers

LARGEST = 8.0
"""Most that a column may add to an update: times the root mean square of its row."""


class FusedState(NamedTuple):
    """State of one table, the same V + D numbers as of :func:`ember_optax.ember`."""

    row: jax.Array  # float32[V], one number per token
    col: jax.Array  # float32[D], one number per place in a token's vector
    count: jax.Array  # int32[], steps taken


def init(table: jax.Array, *, vocab_axis: int = 0) -> FusedState:
    """Returns the state before the first step.

    Args:
      table: floating [V, D], or [D, V] with `vocab_axis=1`; its shape is enough.
      vocab_axis: the axis that holds the tokens.

    Returns:
      A :class:`FusedState` of zeros. Its statistics are float32, or float64 for a
      float64 table.

    Raises:
      ValueError: `table` has not two axes, an empty one or no floating dtype, or
        `vocab_axis` is none of its axes.
    """
    axis = _axis(table, vocab_axis)
    row, col = _rule.init_moments(table.shape, table.dtype, axis)
    return FusedState(row, col, jnp.zeros([], jnp.int32))


def apply(
    table: jax.Array,
    state: FusedState,
    grad: jax.Array,
    *,
    learning_rate: optax.ScalarOrSchedule,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    vocab_axis: int = 0,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[jax.Array, FusedState]:
    r"""Takes a step of the variant of Ember with the column factor of the last step.

    .. math::

      \hat v_{ij} &= \frac{row_i^{(t)}}{1 - b_2^t} \,
        \frac{col_j^{(t - 1)}}{mean(col^{(t - 1)})} \\
      u_{ij} &= \frac{G_{ij}}{\sqrt{\hat v_{ij}} + \epsilon}, \quad
        |u_{ij}| \le 8 \sqrt{\frac{mean_j(G_{ij}^2) (1 - b_2^t)}{row_i^{(t)}}} \\
      \theta_{ij} &\leftarrow
        \theta_{ij} - lr \left( u_{ij} + weight\_decay \, \theta_{ij} \right)

    with `row` and `col` as in :func:`ember_optax.scale_by_ember`. While `col` is zero,
    as at the first step, its factor is 1. The bound on u holds where a column wakes up,
    with gradients far above all that its factor has seen: it is 8 times what the root
    mean square of the row would do. The new table is computed in the dtype of the
    statistics and rounded once.

    On TPU this is a kernel that reads the gradient and the table once and writes the
    table in place, where `table` and `state` are donated to the `jax.jit` around it.
    Elsewhere it is plain JAX, which is not faster than the exact rule.

    .. warning::
      This is not the rule of :func:`ember_optax.ember`, and it has been faster nowhere
      that we could measure. See docs/fused.md.

    Args:
      table: floating [V, D], or [D, V] with `vocab_axis=1`.
      state: of :func:`init` or of the last step.
      grad: floating, of the shape of the table.
      learning_rate: a scalar, or a schedule from the count of steps to a scalar.
      b2: decay of both statistics, in [0, 1), the same in all steps.
      eps: added to the root of the second moment, not negative.
      weight_decay: strength of the decoupled decay of all rows, not negative.
      vocab_axis: the axis that holds the tokens.
      axis_name: inside `jax.shard_map`, the mesh axes that the tokens are sharded over.
        `table`, `grad` and `state.row` are then one device's part.

    Returns:
      The table and its state after the step.

    Raises:
      ValueError: shapes or dtypes do not fit each other, a hyperparameter is out of
        its range, or there is a mesh and no `jax.shard_map` over all of its axes.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from ember_optax.experimental import fused
      >>> table = jnp.zeros((3, 2))
      >>> state = fused.init(table)
      >>> grad = jnp.array([[3., 4.], [0., 0.], [3., 4.]])
      >>> table, state = fused.apply(table, state, grad, learning_rate=0.1)
      >>> print(table.round(2))
      [[-0.08 -0.11]
       [ 0.    0.  ]
       [-0.08 -0.11]]

    References:
      `Token Geometry <https://arxiv.org/abs/2607.01455>`_, 2026, for the exact rule
    """
    _checks.check_constant(b2)
    _checks.check_hyperparameters(b2, eps, "all")
    _checks.check_weight_decay(weight_decay)
    axis = _axis(table, vocab_axis)
    _check_fit(table, state, grad, axis)
    _check_mesh()
    lr = learning_rate(state.count) if callable(learning_rate) else learning_rate
    dtype = state.row.dtype
    count = cast(jax.Array, optax.safe_increment(state.count))
    decay = _decay.constant(b2, count, dtype)
    bound = LARGEST * jnp.sqrt(decay.correction)
    scalars = (decay.b2, decay.rate, eps, lr, weight_decay, bound)
    numbers = Numbers(*(jnp.asarray(x, dtype) for x in scalars))

    col_root = _kernel.column_root(state.col, decay.correction)
    n_shards = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    n_rows = state.row.size * n_shards
    limit = _rule.largest_sum(n_rows, state.col.size, dtype)
    table, row, col_sums = jax.lax.platform_dependent(
        *(table, grad, state.row, col_root, numbers),
        tpu=partial(_kernel.kernel_step, axis=axis, limit=limit),
        default=partial(_kernel.plain_step, axis=axis, limit=limit),
    )
    if axis_name is not None:
        col_sums = jax.lax.psum(col_sums, axis_name)
    col_mean = jnp.where(col_sums > limit, 0, col_sums) / n_rows
    col = _rule.move(state.col, numbers.rate * col_mean, numbers.b2, numbers.rate)
    return table, FusedState(row, col, count)


def _axis(table: jax.Array, vocab_axis: int) -> int:
    check_vocab_axis(vocab_axis)
    (axis,) = token_axes(by_path(table), vocab_axis).values()
    if len(table.shape) != 2:
        raise ValueError(
            f"The table has the shape {table.shape}, but a fused step needs two axes:"
            " use ember_optax.ember, or reshape the table and its gradient."
        )
    return axis


def _check_fit(table: jax.Array, state: FusedState, grad: jax.Array, axis: int) -> None:
    _checks.check_state(state, FusedState)
    if grad.shape != table.shape or not jnp.issubdtype(grad.dtype, jnp.floating):
        raise ValueError(
            f"The gradient is {grad.dtype}{list(grad.shape)}, but a table of"
            f" {list(table.shape)} needs floating-point numbers of its shape."
        )
    expected = (table.shape[axis],), (table.shape[1 - axis],)
    if (state.row.shape, state.col.shape) != expected:
        raise ValueError(
            f"The state holds a row of {state.row.shape} and a col of"
            f" {state.col.shape}, but for a table of {table.shape} with its tokens"
            f" along axis {axis} they must be {expected[0]} and {expected[1]}: call"
            " fused.init with this table and this vocab_axis."
        )


def _check_mesh() -> None:
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and not mesh.are_all_axes_manual:
        raise ValueError(
            f"There is a mesh with the axes {mesh.axis_names}, but a fused step is that"
            " of one device: call it inside a jax.shard_map over all axes of the mesh,"
            " with axis_name for those that the tokens are sharded over."
        )
