"""Conversion of optimizer states from Adam to Ember and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ember_optax import _decay, _rule
from ember_optax._axes import VocabAxis, axis_of_state, check_vocab_axis
from ember_optax._checks import check_b2
from ember_optax._convert._carry_over import carry_over, check_shape, common_value
from ember_optax._decay import ScalarOrSchedule
from ember_optax._ember import EmberState
from ember_optax._mesh import constrain, replicate
from ember_optax._paths import by_path, listed, path_from_key, quoted
from ember_optax._rule import TableMoments
from ember_optax._states import StateLeaf, flatten_state

MOMENT_STATES = (optax.ScaleByAdamState, EmberState)


class Moments(NamedTuple):
    """Second moment of one parameter, and the first moment that Adam has."""

    count: jax.Array
    bias_correction: jax.Array
    value: TableMoments | tuple[jax.Array, jax.Array]  # of Ember, or Adam's mu and nu


def from_adam(
    adam_state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    *,
    adam_b2: ScalarOrSchedule,
    vocab_axis: VocabAxis = None,
) -> Any:
    r"""Converts the state of a run of Adam for an optimizer with Ember on the tables.

    Adam's second moment of a table is averaged over columns and over rows:

    .. math::

      row_i = mean_j \, \nu_{ij}, \quad col_j = mean_i \, \nu_{ij}, \quad
      bias\_correction = 1 - adam\_b2^t

    With equal b2 this is the state that Ember would have after the same gradients.

    Everything else is kept bitwise: Adam's moments of the body, momentum, accumulated
    gradients, counters. A leaf is found again by its path in the same type of state,
    such as `MultiStepsState.acc_grads`. Leaves that only `tx` has start as `tx.init`
    makes them, except schedules, which continue at the step of the given state. Leaves
    that only the given state has are refused, except Adam's first moment of the tables,
    which Ember does not have, and the steps of schedules. Hyperparameters of
    `optax.inject_hyperparams` are those of `tx`.

    Args:
      adam_state: state of any optimizer built on `optax.scale_by_adam`: `optax.adamw`,
        chains around it, several in `optax.multi_transform`. Tables that Ember already
        trains keep their moments. `optax.adamax` has the same class of state, but its
        `nu` is a maximum: do not convert it.
      tx: optimizer to continue with, such as :func:`ember_optax.with_ember`.
      params: the parameters, in the container that both optimizers see.
      adam_b2: decay of the Adam that trained the tables, a number or a schedule.
      vocab_axis: the `vocab_axis` of the Ember in `tx`. A square table needs it.

    Returns:
      A state like `tx.init(params)`. On a mesh, call this under `jax.set_mesh` and
      `jax.jit`, with `out_shardings=opt_state_shardings(...)` on Auto axes.

    Raises:
      ValueError: `adam_state` has no moments of Adam, twice those of a parameter, or
        not those of the parameters that `tx` trains; `tx` has no Ember, or no place for
        something in `adam_state`; counts of steps differ where `tx` has one for them
        (not checked under `jax.jit`); a table is square and has no `vocab_axis`; a
        decay is outside [0, 1).

    Examples:
      >>> import jax, jax.numpy as jnp, optax, ember_optax
      >>> params = {"embed": jnp.ones((4, 2)), "mlp": jnp.ones((2, 2))}
      >>> adamw = optax.adamw(1e-3)
      >>> _, adam_state = adamw.update(params, adamw.init(params), params)
      >>> tx = ember_optax.with_ember(adamw, head_learning_rate=1e-3, vocab_size=4)
      >>> state = ember_optax.from_adam(adam_state, tx, params, adam_b2=0.999)
      >>> print(state.ember.tables["embed"].row)
      [0.001 0.001 0.001 0.001]
    """
    return _convert(adam_state, tx, params, MOMENT_STATES, adam_b2, vocab_axis)


def to_adam(
    ember_state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    *,
    adam_b2: ScalarOrSchedule,
    vocab_axis: VocabAxis = None,
) -> Any:
    r"""Converts the state of a run of Ember for an optimizer with Adam on the tables.

    The corrected second moment of a table stays the same; the first moment is zero:

    .. math::

      \nu_{ij} = (1 - adam\_b2^t) \, \hat v_{ij}, \quad \mu_{ij} = 0

    Everything else is as in :func:`from_adam`, which converts the result back.

    Args:
      ember_state: state of an optimizer with Ember in it.
      tx: optimizer to continue with, such as `optax.adamw`.
      params: the parameters, in the container that both optimizers see.
      adam_b2: decay of the Adam in `tx`, a number or a schedule.
      vocab_axis: the `vocab_axis` of that Ember. A square table needs it.

    Returns:
      A state like `tx.init(params)`.

    Raises:
      ValueError: as :func:`from_adam`, with the roles exchanged.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, ember_optax
      >>> params = {"embed": jnp.ones((4, 2))}
      >>> tx, adamw = ember_optax.ember(1e-2), optax.adamw(1e-3)
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> state = ember_optax.to_adam(state, adamw, params, adam_b2=0.999)
      >>> state[0].nu["embed"][0]
      Array([0.001, 0.001], dtype=float32)
    """
    kinds = (EmberState, optax.ScaleByAdamState)
    return _convert(ember_state, tx, params, kinds, adam_b2, vocab_axis)


def _convert(
    state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    kinds: tuple[type, type],
    adam_b2: ScalarOrSchedule,
    vocab_axis: VocabAxis,
) -> Any:
    """Fills the state of `tx`: moments by parameter, everything else by its place."""
    if not callable(adam_b2):
        check_b2(adam_b2)
    check_vocab_axis(vocab_axis)
    leaves, _ = flatten_state(state, params, stop_at=MOMENT_STATES)
    new_leaves, structure = flatten_state(tx.init(params), params, MOMENT_STATES)
    for name, found, kind in zip(
        ("given state", "state of tx"), (leaves, new_leaves), kinds, strict=True
    ):
        if not any(isinstance(leaf.value, kind) for leaf in found):
            raise ValueError(
                f"The {name} has no {kind.__name__}: from_adam converts from Adam to"
                " Ember, to_adam from Ember to Adam. Restore checkpoints with"
                " jax.eval_shape(tx.init, params) as their target."
            )
    old, new = moments_by_path(leaves, adam_b2), moments_by_path(new_leaves, adam_b2)
    if old.keys() != new.keys():
        raise ValueError(
            "Adam or Ember must train the same parameters before and after, but only"
            f" the given state has {listed(old.keys() - new.keys(), none='none')} and"
            f" only tx has {listed(new.keys() - old.keys(), none='none')}. Give the"
            " state, the optimizer and the parameters of one model."
        )
    others = iter(
        carry_over(
            [leaf for leaf in leaves if not isinstance(leaf.value, MOMENT_STATES)],
            [leaf for leaf in new_leaves if not isinstance(leaf.value, MOMENT_STATES)],
            {path: moments.count for path, moments in old.items()},
        )
    )

    def convert(empty: Any) -> Any:
        if isinstance(empty, EmberState):
            return ember_state(empty, old, vocab_axis)
        if isinstance(empty, optax.ScaleByAdamState):
            return _adam_state(empty, old, adam_b2, vocab_axis)
        return next(others)

    return jax.tree.unflatten(structure, [convert(leaf.value) for leaf in new_leaves])


def moments_by_path(
    leaves: Iterable[StateLeaf], adam_b2: ScalarOrSchedule = 0.0
) -> dict[str, Moments]:
    """Finds the moments of every parameter that Adam or Ember trains."""
    found: dict[str, Moments] = {}
    for state in (leaf.value for leaf in leaves):
        if not isinstance(state, MOMENT_STATES):
            continue
        count = jnp.asarray(state.count)
        if isinstance(state, EmberState):
            values = {path_from_key(key): x for key, x in state.tables.items()}
            correction = state.bias_correction
        else:
            nus = by_path(state.nu)
            pairs = zip(jax.tree.leaves(state.mu), nus.values(), strict=True)
            values = dict(zip(nus, pairs, strict=True))
            correction = _decay.bias_correction(adam_b2, count, float)
        if twice := found.keys() & values.keys():
            raise ValueError(
                f"The optimizer state has the moments of {listed(twice)} twice, but"
                " only one Adam or Ember may train a parameter here: convert the states"
                " of chained optimizers one by one."
            )
        found |= {path: Moments(count, correction, x) for path, x in values.items()}
    return found


def ember_state(
    empty: EmberState, old: Mapping[str, Moments], vocab_axis: VocabAxis
) -> EmberState:
    """Fills the state of Ember from the moments by path."""
    # A state without tables takes its count from all parameters.
    found = {path: old[path] for path in map(path_from_key, empty.tables)} or old
    count = common_value({path: moments.count for path, moments in found.items()})
    # One bias correction serves all tables. That of Ember's own moments is preferred,
    # which then stay as they are; those of Adam are scaled.
    first = next(
        (x for x in found.values() if isinstance(x.value, TableMoments)),
        next(iter(found.values())),
    )
    correction = jnp.array(first.bias_correction, empty.bias_correction.dtype)
    tables = {}
    for key, zeros in empty.tables.items():
        path = path_from_key(key)
        value = found[path].value
        if not isinstance(value, TableMoments):
            _, nu = value
            axis = axis_of_state(path, nu.shape, zeros, vocab_axis)
            value = _rule.factor_moment(nu, axis, zeros.row.dtype)
        check_shape(f"moments of {quoted(path)}", value, zeros)
        scale = _ratio(first.bias_correction, found[path].bias_correction)
        moments = jax.tree.map(lambda x, s=scale: x * s.astype(x.dtype), value)
        tables[key] = replicate(moments, None)
    return EmberState(count, tables, correction)


def _adam_state(
    empty: optax.ScaleByAdamState,
    old: dict[str, Moments],
    adam_b2: ScalarOrSchedule,
    vocab_axis: VocabAxis,
) -> optax.ScaleByAdamState:
    zeros = by_path(empty.nu)
    # A state without parameters takes its count from all parameters.
    found = {path: old[path] for path in zeros} or old
    counts = {path: moments.count for path, moments in found.items()}
    adams = {
        p: counts[p] for p in counts if not isinstance(found[p].value, TableMoments)
    }
    count = common_value(adams or counts)
    correction = _decay.bias_correction(adam_b2, count, float)
    mus, nus = jax.tree.leaves(empty.mu), []
    for i, (path, nu) in enumerate(zeros.items()):
        value = found[path].value
        if isinstance(value, TableMoments):
            axis = axis_of_state(path, nu.shape, value, vocab_axis)
            scale = _ratio(correction, found[path].bias_correction)
            dense = _rule.expand_moment(value, axis) * scale.astype(value.row.dtype)
            if jax.sharding.get_abstract_mesh().are_all_axes_explicit:
                dense = constrain(dense, jax.typeof(nu).sharding.spec, None)
        else:
            mu, dense = value
            check_shape(f"moments of {quoted(path)}", dense, nu)
            mus[i] = mu.astype(mus[i].dtype)
        nus.append(dense.astype(nu.dtype))
    return optax.ScaleByAdamState(
        count,
        jax.tree.unflatten(jax.tree.structure(empty.mu), mus),
        jax.tree.unflatten(jax.tree.structure(empty.nu), nus),
    )


def _ratio(new: jax.Array, old: jax.Array) -> jax.Array:
    """Divides bias corrections; 0 before the first step."""
    new = new.astype(old.dtype)
    return jnp.where(old > 0, new / old, 0)
