"""Ember as an Optax gradient transformation."""

# Or help() begins with a page: the aliases in signatures, written out as unions.
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ember_optax import _checks, _decay, _rule
from ember_optax._axes import VocabAxis, check_vocab_axis, token_axes
from ember_optax._clipping import Clipping, Probe
from ember_optax._decay import Remaining, Scalar, ScalarOrSchedule
from ember_optax._mesh import AxisName, AxisNames
from ember_optax._paths import by_path, is_placeholder, keyed, to_key
from ember_optax._reduce import InShardMap, OnMesh, read_again
from ember_optax._rule import ColumnMean, Rule, TableMoments

if TYPE_CHECKING:
    from ember_optax._types import Transformation

RowState = Literal["replicated", "sharded"]


class EmberState(NamedTuple):
    """State of Ember: V + D numbers for each token table."""

    count: jax.Array  # int32[], steps taken
    # By the path of the table, with `:` for `/`; float32 whatever the table's dtype.
    tables: dict[str, TableMoments]
    remaining: Remaining  # product of all b2 so far, two numbers


def scale_by_ember(
    b2: ScalarOrSchedule = 0.999,
    eps: Scalar = 1e-8,
    *,
    column_mean: ColumnMean = "all",
    vocab_axis: VocabAxis = None,
    row_state: RowState = "replicated",
    param_shardings: Any = None,
    axis_names: tuple[AxisName, AxisName] | None = None,
) -> Transformation[EmberState]:
    r"""Rescales the gradients of token tables by a factored second moment.

    For a table with gradient :math:`G` of V rows (tokens) and D columns, at step t:

    .. math::

      row_i &\leftarrow b_2 \, row_i + (1 - b_2) \, mean_j \, G_{ij}^2 \\
      col_j &\leftarrow b_2 \, col_j + (1 - b_2) \, mean_i \, G_{ij}^2 \\
      \hat v_{ij} &= \frac{row_i \, col_j}{mean(col) \, (1 - b_2^t)} \\
      update_{ij} &= G_{ij} / (\sqrt{\hat v_{ij}} + \epsilon)

    This is Adafactor's factored second moment with Adam's debiased constant decay, and
    nothing else of Adafactor: no momentum, no update clipping, no parameter scaling.
    See :func:`ember_optax.ember` for the optimizer with learning rate and weight
    decay, and for when to use it.

    A token is a place along the longest axis of a table, so that [V, D] embeddings,
    [D, V] heads and [V, L, P] per-layer embeddings need no option; all other axes are
    its columns. On a mesh set with `jax.set_mesh` the state is replicated, whatever
    the sharding of the tables.

    Args:
      b2: decay of both statistics, in [0, 1), or a schedule from the count of earlier
        steps to one, such as :func:`ember_optax.adafactor_decay`. :math:`b_2^t` is then
        the product of all decays so far. The state knows it, so a run may go on with
        another `b2`.
      eps: added to the root of the second moment, not negative.
      column_mean: what a column averages over. `"all"` rows, as the current PyTorch
        reference does; or the `"active"` rows, those with a gradient that is not
        zero, as in the first versions of the paper, where the scale is mean(row)
        instead of mean(col). `"active"` takes steps smaller by
        sqrt(active rows / V); on a dense LM-head gradient it is the same.
      vocab_axis: the axis that holds the tokens, where it is not the longest one: an
        int for every table, or a mapping from the path of a table to an int. With
        `column_mean="all"` it does not change the update of a table of two axes.
      row_state: on a mesh, whether `row` is `"replicated"` or `"sharded"` as the rows
        are, which saves its part of the collective where only rows are sharded. `col`
        is always replicated.
      param_shardings: on a mesh with Auto axes, a tree with the sharding of each table
        (that of all parameters will do): all statistics are then added up in one
        all-reduce, where XLA alone needs several collectives. Explicit axes need no
        such help.
      axis_names: for an update inside `jax.shard_map`, the names of the mesh axes that
        rows and that columns of all tables are sharded over, as the two entries of a
        `PartitionSpec`: `("fsdp", None)`. The state is then that of the device's own
        rows and columns. Needs a `vocab_axis`.

    Returns:
      A transformation whose state is an :class:`EmberState`. Updates have the dtype of
      the gradients; the state is float32 (float64 for float64 tables).

    Raises:
      ValueError: for `b2` outside [0, 1) or in a type that cannot hold it. When built,
        for a negative `eps`, for an unknown `column_mean` or `row_state`, for a
        `vocab_axis` that is no int, and for `axis_names` without a `vocab_axis`. In
        `init`, for a leaf that is no table of floating numbers with at least two axes,
        none of them empty, and for `param_shardings` that do not fit. In `update`, for
        gradients that do not fit the state. Messages name the path of the parameter.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, ember_optax
      >>> tx = ember_optax.scale_by_ember()
      >>> table = {"embedding": jnp.ones((4, 2))}
      >>> state = tx.init(table)
      >>> jax.tree.map(jnp.shape, state.tables)
      {'embedding': TableMoments(row=(4,), col=(2,))}
      >>> grads = {"embedding": jnp.array([[3., 4.], [0., 0.], [3., 4.], [0., 0.]])}
      >>> updates, state = tx.update(grads, state)
      >>> print(updates["embedding"].round(3))
      [[1. 1.]
       [0. 0.]
       [1. 1.]
       [0. 0.]]

    References:
      `Token Geometry <https://arxiv.org/abs/2607.01455>`_, 2026
    """
    _checks.check_hyperparameters(b2, eps, column_mean)
    _checks.check_row_state(row_state)
    check_vocab_axis(vocab_axis)
    _checks.check_axis_names(axis_names, vocab_axis)
    names = AxisNames.of(axis_names)
    rule = Rule(eps, column_mean, names)
    reducer = (
        InShardMap(names)
        if axis_names is not None
        else OnMesh(param_shardings, rows_sharded=row_state == "sharded")
    )

    def init_fn(params: optax.Params) -> EmberState:
        count = jnp.zeros([], jnp.int32)
        if callable(b2):
            _checks.check_b2(b2(count))
        if is_placeholder(params):
            # There are no parameter-shaped parts here: one leaf in the place of
            # `tables` makes optax.tree.map_params treat all of them as such.
            remaining = _decay.init(jnp.float32)
            return EmberState(count, count, remaining)  # pyright: ignore
        tables = by_path(params)
        axes = token_axes(tables, vocab_axis)
        moments = {
            path: _rule.init_moments(table.shape, table.dtype, axes[path])
            for path, table in tables.items()
        }
        moments = reducer.constrain(moments, tables, axes)
        remaining = _decay.init(_rule.common_dtype(moments))
        return EmberState(count, keyed(moments), remaining)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        ember_clipping: Probe | Clipping | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EmberState]:
        del params, extra_args
        _checks.check_state(state, EmberState)
        grads = by_path(updates)
        axes = token_axes(grads, vocab_axis)
        _checks.check_gradients(grads, axes, state.tables)
        before = {path: state.tables[to_key(path)] for path in grads}
        dtype = _rule.common_dtype(before)
        if isinstance(ember_clipping, Probe):
            ember_clipping.add(grads, reducer, axes, dtype)
            return jax.tree.map(jnp.zeros_like, updates), state
        clipping = ember_clipping and ember_clipping.of(grads)

        sums, scale = clipping or (reducer.sum_squares(grads, axes, dtype), None)
        decay, remaining = _decay.step(b2, state.remaining, state.count)
        # Or a loop over steps might keep them as the gradients lie.
        before = reducer.constrain(before, grads, axes)
        moments = {path: rule.move(before[path], sums[path], decay) for path in grads}
        moments = reducer.constrain(moments, grads, axes)
        roots = {path: rule.roots(moments[path], sums[path], decay) for path in grads}
        roots = reducer.constrain(roots, grads, axes)
        new_updates = [
            rule.precondition(
                read_again(grad, roots[path]), roots[path], axes[path], scale
            )
            for path, grad in grads.items()
        ]
        count = cast(jax.Array, optax.safe_increment(state.count))
        return (
            jax.tree.structure(updates).unflatten(new_updates),
            EmberState(count, keyed(moments), remaining),
        )

    transformation = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    return cast("Transformation[EmberState]", transformation)


def ember(
    learning_rate: optax.ScalarOrSchedule,
    b2: ScalarOrSchedule = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    column_mean: ColumnMean = "all",
    vocab_axis: VocabAxis = None,
    row_state: RowState = "replicated",
    param_shardings: Any = None,
    axis_names: tuple[AxisName, AxisName] | None = None,
) -> Transformation[tuple[EmberState, optax.OptState, optax.OptState]]:
    r"""The Ember optimizer for token tables: embeddings and language-model heads.

      >>> import optax, ember_optax
      >>> tx = optax.multi_transform(
      ...     {"table": ember_optax.ember(1e-2), "body": optax.adamw(3e-4)},
      ...     ember_optax.label_token_tables)

    Adam's dense V x D moments become V + D float32 numbers for each table, and there
    is no first moment:

    .. math::

      \theta \leftarrow \theta - lr \, (update + weight\_decay \, \theta)

    with the update of :func:`ember_optax.scale_by_ember`.

    **What to set.** Embedding and head want learning rates of their own, a factor of
    about 20 apart: label them with `label_token_tables(..., embed=..., head=...)`. In
    this project's small runs 0.56 and 0.032 were best at width 96; practice scales both
    with 1 / sqrt(width). :func:`ember_optax.adafactor_decay` as `b2` was better than
    any constant one.

    .. warning::
      Ember is for parameters with one row (or column) per token, and for nothing
      else: use it inside `optax.multi_transform`. Hidden matrices, positional
      embeddings, norms and biases belong to AdamW, Muon or whatever trains the body.

    .. warning::
      `optax.inject_hyperparams` casts hyperparameters to the dtype of the parameters,
      and bfloat16 turns `b2 = 0.999` into 1. With parameters in bfloat16 or float16
      pass it `hyperparam_dtype=jnp.float32`; anything else is refused. It also makes
      an array of an int: with a `vocab_axis` pass it `static_args=("vocab_axis",)`.

    Args:
      learning_rate: a scalar, or a schedule from the count of steps to a scalar.
      b2: decay of both statistics, in [0, 1), or a schedule from earlier steps to one.
      eps: added to the root of the second moment, not negative.
      weight_decay: strength of the decoupled decay, which the learning rate
        multiplies, not negative. It moves all rows, those without gradient as well.
      weight_decay_mask: a tree of bools like the parameters, or a function from the
        parameters to one: where to decay. By default everywhere.
      column_mean, vocab_axis, row_state, param_shardings, axis_names: see
        :func:`ember_optax.scale_by_ember`.

    Returns:
      The optimizer as an `optax.GradientTransformationExtraArgs`.

    Raises:
      ValueError: as :func:`ember_optax.scale_by_ember`, for a `learning_rate` that is
        neither a number nor a schedule, and for a negative `weight_decay`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, ember_optax
      >>> params = {"embed": {"embedding": jnp.ones((8, 4))}, "scale": jnp.ones(4)}
      >>> def loss(params):
      ...   return jnp.sum((params["embed"]["embedding"] * params["scale"]) ** 2)
      >>> tx = optax.multi_transform(
      ...     {"table": ember_optax.ember(1e-1), "body": optax.adamw(1e-1)},
      ...     ember_optax.label_token_tables)
      >>> state = tx.init(params)
      >>> for _ in range(5):
      ...   grads = jax.grad(loss)(params)
      ...   updates, state = tx.update(grads, state, params)
      ...   params = optax.apply_updates(params, updates)
      ...   print(f"{loss(params):.2f}")
      20.99
      13.73
      8.98
      5.87
      3.84

    References:
      `Token Geometry <https://arxiv.org/abs/2607.01455>`_, 2026
    """
    _checks.check_learning_rate(learning_rate)
    _checks.check_weight_decay(weight_decay)
    transformation = optax.chain(
        scale_by_ember(
            b2,
            eps,
            column_mean=column_mean,
            vocab_axis=vocab_axis,
            row_state=row_state,
            param_shardings=param_shardings,
            axis_names=axis_names,
        ),
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    return cast("Transformation", transformation)
