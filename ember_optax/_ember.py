"""Ember as an Optax gradient transformation."""

# Keep annotations as strings; otherwise help(ember) prints every type alias in full.
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ember_optax import _checks, _decay, _rule
from ember_optax._axes import VocabAxis, check_vocab_axis, token_axes
from ember_optax._decay import Scalar, ScalarOrSchedule
from ember_optax._mesh import AxisName, AxisNames, Layout, find_layout, replicate
from ember_optax._paths import by_path, is_placeholder, state_key
from ember_optax._reduce import (
    cpu_fusion_barrier,
    mean_squares,
    mean_squares_in_shard_map,
)
from ember_optax._rule import MeanSquares, TableMoments


class EmberState(NamedTuple):
    """State of Ember: V + D numbers for each token table."""

    count: jax.Array  # int32[], number of steps taken
    # Keyed by parameter path with `:` for `/`; float32 whatever the table's dtype.
    tables: dict[str, TableMoments]
    bias_correction: jax.Array  # float32[], 1 - the product of all b2 so far


class Measured(NamedTuple):
    """Gradients of all tables in one step, and their mean squares."""

    grads: Mapping[str, jax.Array]  # by path
    axes: Mapping[str, int]  # the axis of each that holds the tokens
    layout: Layout | None
    squares: dict[str, MeanSquares]


class TableRule(NamedTuple):
    """Ember on tables by path, with all options bound when it is built."""

    b2: ScalarOrSchedule
    eps: Scalar
    vocab_axis: VocabAxis
    param_shardings: Any
    names: AxisNames | None = None  # of axis_names, inside jax.shard_map

    def init(self, tables: Mapping[str, Any]) -> EmberState:
        """Builds the state of zeros."""
        count = jnp.zeros([], jnp.int32)
        if callable(self.b2):
            _checks.check_b2(self.b2(count))
        axes = token_axes(tables, self.vocab_axis)
        moments = {
            state_key(path): _rule.init_moments(table.shape, table.dtype, axes[path])
            for path, table in tables.items()
        }
        if self.names is None:
            moments = replicate(moments, find_layout(tables, self.param_shardings))
        correction = jnp.zeros([], _rule.common_dtype(moments))
        return EmberState(count, moments, correction)

    def measure(self, grads: Mapping[str, jax.Array], state: EmberState) -> Measured:
        """Takes the mean squares of the gradients: one pass for rows and columns each.

        Raises:
          ValueError: the gradients do not fit the state.
        """
        _checks.check_state(state, EmberState)
        axes = token_axes(grads, self.vocab_axis)
        _checks.check_gradients(grads, axes, state.tables)
        dtype = _rule.common_dtype(state.tables)
        if self.names is not None:
            squares = mean_squares_in_shard_map(grads, axes, dtype, self.names)
            return Measured(grads, axes, None, squares)
        layout = find_layout(grads, self.param_shardings)
        squares = mean_squares(grads, axes, dtype, layout)
        # Constrain the means here, so that they are gathered once; the moments and the
        # denominators both need them.
        return Measured(grads, axes, layout, self._pinned(squares, layout))

    def update(
        self, measured: Measured, state: EmberState, scale: jax.Array | None = None
    ) -> tuple[dict[str, jax.Array], EmberState]:
        """Takes one step.

        Args:
          measured: result of :meth:`measure`.
          state: state before the step.
          scale: factor that the gradients are multiplied by, such as that of clipping.

        Returns:
          The update of each table by path, in the dtype of its moments, and the state.
        """
        grads, axes, layout, squares = measured
        if scale is not None:
            squares = {p: _rule.scale_squares(s, scale) for p, s in squares.items()}
        dtype = state.bias_correction.dtype
        gap = _decay.one_minus_b2(self.b2, state.count, dtype)
        correction = state.bias_correction + gap * (1 - state.bias_correction)
        column_axes = self.names.columns if self.names else ()
        updates, tables = {}, {}
        for path, grad in grads.items():
            square = squares[path]
            # Constrain before and after: inside lax.scan, XLA could otherwise give the
            # statistics that are carried the sharding of the gradients.
            before = self._pinned(state.tables[state_key(path)], layout)
            moments = _rule.update_moments(before, square, gap)
            moments = self._pinned(moments, layout)
            factors = _rule.denominators(moments, square, correction, column_axes)
            factors = self._pinned(factors, layout)
            grad = cpu_fusion_barrier(grad, factors)
            updates[path] = _rule.precondition(
                grad, factors, axes[path], self.eps, scale
            )
            tables[state_key(path)] = moments
        count = cast(jax.Array, optax.safe_increment(state.count))
        return updates, EmberState(count, tables, correction)

    def _pinned(self, tree: Any, layout: Layout | None) -> Any:
        return tree if self.names is not None else replicate(tree, layout)


def scale_by_ember(
    b2: ScalarOrSchedule = 0.999,
    eps: Scalar = 1e-8,
    *,
    vocab_axis: VocabAxis = None,
    param_shardings: Any = None,
    axis_names: tuple[AxisName, AxisName] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescales the gradients of token tables by a factored second moment.

    For a table with gradient :math:`G` of V rows (tokens) and D columns, at step t:

    .. math::

      row_i &\leftarrow b_2 \, row_i + (1 - b_2) \, mean_j \, G_{ij}^2 \\
      col_j &\leftarrow b_2 \, col_j + (1 - b_2) \, mean_i \, G_{ij}^2 \\
      \hat v_{ij} &= \frac{row_i \, col_j}{mean(col) \, (1 - b_2^t)} \\
      update_{ij} &= G_{ij} / (\sqrt{\hat v_{ij}} + \epsilon)

    This is Adafactor's factored second moment with Adam's bias correction, and nothing
    else of Adafactor: no momentum, no update clipping, no parameter scaling. See
    :func:`ember_optax.with_ember` for the optimizer of a whole model.

    Tokens are the entries of the longest axis of a table, so [V, D] embeddings, [D, V]
    heads and [V, L, P] per-layer embeddings need no option; all other axes are columns.
    On a mesh set with `jax.set_mesh` the state is replicated, whatever the sharding of
    the tables.

    Args:
      b2: decay of both statistics, in [0, 1), or a schedule from the count of earlier
        steps to one, such as :func:`ember_optax.adafactor_decay`. :math:`b_2^t` is then
        the product of all decays so far. The values of a schedule are clamped to
        [0, 1 - 1e-6]: at 1 the statistics would stop moving.
      eps: added to the root of the second moment, positive.
      vocab_axis: the axis that holds the tokens, where it is not the longest one: an
        int for every table, or a mapping from the path of a table to an int. It does
        not change the update of a table of two axes.
      param_shardings: on a mesh with Auto axes, a tree with the `NamedSharding` of each
        table; the tree of all parameters will do. One all-reduce then adds up all
        statistics, where XLA alone needs several collectives. Explicit axes need no
        such help.
      axis_names: for an update inside `jax.shard_map`, the names of the mesh axes that
        rows and that columns of all tables are sharded over, as the two entries of a
        `PartitionSpec`: `("fsdp", None)`. The state is then that of the device's own
        rows and columns. Needs a `vocab_axis`.

    Returns:
      A transformation whose state is an :class:`EmberState`. Updates have the dtype of
      the gradients; the state is float32 (float64 for float64 tables).

    Raises:
      ValueError: when built, for a `b2` outside [0, 1) or in a dtype that cannot hold
        it, for an `eps` that is not positive, for a `vocab_axis` that is not an int,
        and for `axis_names` without a `vocab_axis`. In `init`, for a leaf that is not a
        floating-point table with at least two axes, none of them empty, and for
        `param_shardings` that do not fit. In `update`, for gradients that do not fit
        the state. Messages name the path of the parameter.

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
    _checks.check_hyperparameters(b2, eps)
    check_vocab_axis(vocab_axis)
    _checks.check_axis_names(axis_names, vocab_axis)
    names = None if axis_names is None else AxisNames.from_partition_spec(axis_names)
    rule = TableRule(b2, eps, vocab_axis, param_shardings, names)

    def init_fn(params: optax.Params) -> EmberState:
        return init_state(rule, params)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EmberState]:
        del params, extra_args
        grads = by_path(updates)
        new_updates, state = rule.update(rule.measure(grads, state), state)
        rounded = [new_updates[path].astype(grad.dtype) for path, grad in grads.items()]
        return jax.tree.structure(updates).unflatten(rounded), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def init_state(rule: TableRule, params: Any) -> EmberState:
    """Builds the state of all tables in a tree, or of Optax's placeholder for one."""
    if is_placeholder(params):
        # optax.tree.map_params maps the parts of a state that mirror the parameters.
        # Ember has none; one leaf in the place of `tables` says that.
        state = rule.init({})
        return state._replace(tables=cast(Any, state.count))
    return rule.init(by_path(params))


def ember(
    learning_rate: optax.ScalarOrSchedule,
    b2: ScalarOrSchedule = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    vocab_axis: VocabAxis = None,
    param_shardings: Any = None,
    axis_names: tuple[AxisName, AxisName] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""The Ember optimizer for token tables: embeddings and language-model heads.

    Adam's dense V x D moments become V + D float32 numbers for each table, and there
    is no first moment:

    .. math::

      \theta \leftarrow \theta - lr \, (update + weight\_decay \, \theta)

    with the update of :func:`ember_optax.scale_by_ember`.

    This is the part to compose by hand, with `optax.multi_transform` behind
    `optax.clip_by_global_norm`. :func:`ember_optax.with_ember` does the same in one
    call and takes the norm of the tables from sums that Ember needs anyway, which saves
    two passes over each table and a stored gradient.

    .. warning::
      Ember is only for parameters with one row (or column) per token: use it inside
      `optax.multi_transform`. Hidden matrices, positional
      embeddings, norms and biases belong to AdamW, Muon or whatever trains the body.

    .. warning::
      Input tables and heads need learning rates of their own, which differ by a factor
      of 30 and more: give each an `ember` of its own, as below.

    .. warning::
      `optax.inject_hyperparams` casts hyperparameters to the dtype of the parameters,
      and bfloat16 turns `b2 = 0.999` into 1. With parameters in bfloat16 or float16
      pass it `hyperparam_dtype=jnp.float32`; anything else is refused. It also makes
      an array of an int: with a `vocab_axis` pass it `static_args=("vocab_axis",)`.

    Args:
      learning_rate: a scalar, or a schedule from the count of steps to a scalar.
      b2: decay of both statistics, in [0, 1), or a schedule from the count of earlier
        steps to one. The default is the paper's; in pretraining
        :func:`ember_optax.adafactor_decay` was better.
      eps: added to the root of the second moment, positive.
      weight_decay: strength of the decoupled decay, which the learning rate
        multiplies, not negative. It moves all rows, those without gradient as well.
      weight_decay_mask: a tree of bools like the parameters, or a function from the
        parameters to one: where to decay. By default everywhere.
      vocab_axis, param_shardings, axis_names: see :func:`ember_optax.scale_by_ember`.

    Returns:
      The optimizer as an `optax.GradientTransformationExtraArgs`.

    Raises:
      ValueError: as :func:`ember_optax.scale_by_ember`, for a `learning_rate` that is
        neither a number nor a schedule, and for a negative `learning_rate` or
        `weight_decay`.

    Examples:
      >>> import functools, jax, jax.numpy as jnp, optax, ember_optax
      >>> params = {"embed": {"embedding": jnp.ones((8, 4))}, "scale": jnp.ones(4)}
      >>> def loss(params):
      ...   return jnp.sum((params["embed"]["embedding"] * params["scale"]) ** 2)
      >>> tx = optax.multi_transform(
      ...     {"embed": ember_optax.ember(1e-1), "head": ember_optax.ember(1e-1),
      ...      "body": optax.adamw(1e-1)},
      ...     functools.partial(
      ...         ember_optax.label_token_tables, embed="embed", head="head"))
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
    _checks.check_learning_rate("learning_rate", learning_rate)
    _checks.check_weight_decay(weight_decay)
    return optax.chain(
        scale_by_ember(
            b2,
            eps,
            vocab_axis=vocab_axis,
            param_shardings=param_shardings,
            axis_names=axis_names,
        ),
        optax.add_decayed_weights(weight_decay, weight_decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
