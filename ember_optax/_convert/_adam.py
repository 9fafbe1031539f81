"""Optimizer states that change their optimizer: from Adam to Ember and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ember_optax import _decay, _rule
from ember_optax._axes import VocabAxis, axis_of_state, check_vocab_axis
from ember_optax._checks import check_hyperparameters
from ember_optax._convert._checks import (
    check_kind,
    check_same_parameters,
    check_shape,
)
from ember_optax._convert._kept import Kept
from ember_optax._convert._parts import (
    PARTS,
    ByPath,
    Dense,
    Factored,
    common_value,
    moments_by_path,
)
from ember_optax._decay import ScalarOrSchedule
from ember_optax._ember import EmberState
from ember_optax._mesh import constrain
from ember_optax._paths import by_path, path_from_key
from ember_optax._states import StateLeaf, leaves_of


def from_adam(
    adam_state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    *,
    adam_b2: ScalarOrSchedule,
    vocab_axis: VocabAxis = None,
) -> Any:
    r"""Returns the state with which a run of Adam goes on with Ember on its tables.

    For every table that `tx` gives to Ember, Adam's second moment is folded,

    .. math::

      row_i = c \, mean_j \, \nu_{ij}, \quad col_j = c \, mean_i \, \nu_{ij}, \quad
      c = \frac{1 - ember\_b2^t}{1 - adam\_b2^t}

    and the count stays t, so that both are corrected for their bias to the same means.
    With equal b2, c is 1 and this is the state that Ember would have after the same
    gradients.

    Whatever else both optimizers have is kept to the bit: Adam's moments of the body,
    momentum, accumulated gradients, counters. Two parts are the same if they have the
    same path in the same kind of state, such as `MultiStepsState.acc_grads`. What only
    `tx` has starts as `tx.init` makes it, except schedules, which start at the step of
    the given state. What only the given state has would be lost and is refused, except
    Adam's first moment of the tables, which Ember does not have, and the steps of
    schedules. Hyperparameters of `optax.inject_hyperparams` are those of `tx`.

    Args:
      adam_state: state of any optimizer made of `optax.scale_by_adam`: `optax.adam`,
        `optax.adamw`, chains around them, several of them in `optax.multi_transform`.
        Tables that are Ember's already stay so. Do not give that of `optax.adamax`: it
        cannot be told apart, and has a maximum in the place of the mean.
      tx: the optimizer to go on with, such as `optax.multi_transform` over
        `{"table": ember, "body": adamw}`.
      params: the parameters, in the container that both optimizers see.
      adam_b2: decay of the Adam that trained the tables, a number or a schedule.
      ember_b2: likewise of the Ember in `tx`. Numbers need not be given where they are
        equal.
      vocab_axis: as given to the Ember in `tx`. A square table needs it.

    Returns:
      A state like `tx.init(params)`. On a mesh in context (`jax.set_mesh`) `row` and
      `col` are constrained as by Ember itself; there use this under `jax.jit`, with
      `out_shardings=opt_state_shardings(...)` on Auto axes.

    Raises:
      ValueError: `adam_state` has no moments of Adam, or twice those of a parameter, or
        not those of the parameters that `tx` trains; `tx` has no Ember, or no place for
        something else in `adam_state`; steps differ where there is only one count for
        them; a table is square and has no `vocab_axis`; a decay lies outside [0, 1).

    Examples:
      >>> import jax, jax.numpy as jnp, optax, ember_optax
      >>> params = {"embed": jnp.ones((4, 2)), "mlp": jnp.ones((2, 2))}
      >>> adamw = optax.adamw(1e-3)
      >>> _, adam_state = adamw.update(params, adamw.init(params), params)
      >>> tx = optax.multi_transform(
      ...     {"table": ember_optax.ember(1e-2), "body": optax.adamw(1e-3)},
      ...     ember_optax.label_token_tables)
      >>> state = ember_optax.from_adam(adam_state, tx, params, adam_b2=0.999)
      >>> print(state.inner_states["table"].inner_state[0].tables["embed"].row)
      [0.001 0.001 0.001 0.001]
    """
    return _convert(adam_state, tx, params, (Dense, Factored), adam_b2, vocab_axis)


def to_adam(
    ember_state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    *,
    adam_b2: ScalarOrSchedule,
    vocab_axis: VocabAxis = None,
) -> Any:
    r"""Returns the state with which a run of Ember goes on with Adam on its tables.

    Adam's corrected second moment of a table is Ember's, and its first moment is zero:

    .. math::

      \nu_{ij} = (1 - adam\_b2^t) \, \hat v_{ij}, \quad \mu_{ij} = 0

    :func:`from_adam` with the same arguments gives back the state of Ember. Everything
    else is as described there.

    Args:
      ember_state: state of an optimizer with Ember in it.
      tx: the optimizer to go on with, such as `optax.adamw`.
      params: the parameters, in the container that both optimizers see.
      adam_b2: decay of the Adam in `tx`, a number or a schedule.
      ember_b2: likewise of the Ember in `tx`, for tables that Adam has trained. A state
        of Ember knows its own.
      vocab_axis: as given to that Ember. A square table needs it.

    Returns:
      A state like `tx.init(params)`.

    Raises:
      ValueError: as :func:`from_adam`, with the roles exchanged.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, ember_optax
      >>> params = {"embed": jnp.ones((4, 2))}
      >>> tx = ember_optax.ember(1e-2)
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> ember_optax.to_adam(
      ...     state, optax.adamw(1e-3), params, adam_b2=0.999)[0].nu["embed"][0]
      Array([0.001, 0.001], dtype=float32)
    """
    return _convert(ember_state, tx, params, (Factored, Dense), adam_b2, vocab_axis)


def _convert(
    state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    kinds: tuple[type, type],
    adam_b2: ScalarOrSchedule,
    vocab_axis: VocabAxis,
) -> Any:
    """Returns the state of `tx` with all that `state` knows.

    Both directions are one: whatever part of `tx` wants the moments of a parameter gets
    those of whatever part of `state` has them.
    """
    check_hyperparameters(adam_b2, 1e-8)
    check_vocab_axis(vocab_axis)
    template = tx.init(params)
    old_leaves = leaves_of(state, params, whole=PARTS)
    new_leaves = leaves_of(template, params, whole=PARTS)
    old = moments_by_path(state, old_leaves)
    new = moments_by_path(template, new_leaves)
    source, target = kinds
    check_kind("given state", old, source)
    check_kind("state of tx", new, target)
    check_same_parameters(old, new)
    adams = [x for x in old_leaves if isinstance(x.value, optax.ScaleByAdamState)]
    idle = {x.place: x.value for x in adams if not jax.tree.leaves(x.value.nu)}
    kept = Kept(old_leaves, {path: found.count for path, found in old.items()})

    def convert(leaf: StateLeaf) -> Any:
        if isinstance(leaf.value, EmberState):
            return _to_ember_part(leaf.value, old, adam_b2, vocab_axis)
        if isinstance(leaf.value, optax.ScaleByAdamState):
            if not jax.tree.leaves(leaf.value.nu):  # no parameter is routed to it
                return idle.get(leaf.place, leaf.value)
            return _to_adam_part(leaf.value, old, adam_b2, vocab_axis)
        return kept.take(leaf)

    converted = [convert(leaf) for leaf in new_leaves]
    kept.check_all_taken()
    structure = jax.tree.structure(template, is_leaf=lambda x: isinstance(x, PARTS))
    return jax.tree.unflatten(structure, converted)


def _to_ember_part(
    part: EmberState, old: ByPath, adam_b2: ScalarOrSchedule, vocab_axis: VocabAxis
) -> EmberState:
    """Fills a new state of Ember."""
    known = {path: old[path] for path in map(path_from_key, part.tables)}
    count = common_value({path: x.count for path, x in known.items()})
    dtype = part.bias_correction.dtype
    correction = adam_correction = _decay.bias_correction(adam_b2, count, dtype)
    kept = {p: x.bias_correction for p, x in known.items() if isinstance(x, Factored)}
    if kept:
        correction = common_value(kept)
    scale = jnp.where(count > 0, correction / adam_correction, 0)
    tables = {}
    for key, empty in part.tables.items():
        path = path_from_key(key)
        found = known[path]
        if isinstance(found, Dense):
            axis = axis_of_state(path, found.nu.shape, empty, vocab_axis)
            moments = _rule.factor_moment(found.nu, axis, empty.row.dtype)
            moments = jax.tree.map(lambda x: x * scale.astype(x.dtype), moments)
        else:
            moments = found.moments
        # Where tx.init has put them, as far as Explicit axes tell it.
        tables[key] = jax.tree.map(
            lambda x, y: constrain(x, jax.typeof(y).sharding.spec, None),
            moments,
            empty,
        )
    return EmberState(count, tables, correction)


def _to_adam_part(
    part: optax.ScaleByAdamState,
    old: ByPath,
    adam_b2: ScalarOrSchedule,
    vocab_axis: VocabAxis,
) -> optax.ScaleByAdamState:
    """Fills a new state of Adam."""
    paths = list(by_path(part.nu))
    counts = {p: old[p].count for p in paths if isinstance(old[p], Dense)}
    count = common_value(counts or {p: old[p].count for p in paths})

    def convert(path: str, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = old[path]
        if isinstance(found, Dense):
            check_shape(path, found.nu, nu)
            return found.mu.astype(mu.dtype), found.nu.astype(nu.dtype)
        axis = axis_of_state(path, nu.shape, found.moments, vocab_axis)
        new = _decay.bias_correction(adam_b2, found.count, nu.dtype)
        old_correction = found.bias_correction.astype(nu.dtype)
        scale = jnp.where(found.count > 0, new / old_correction, 0)
        dense = (scale * _rule.expand_moment(found.moments, axis)).astype(nu.dtype)
        if jax.sharding.get_abstract_mesh().are_all_axes_explicit:
            dense = constrain(dense, jax.typeof(nu).sharding.spec, None)
        return mu, dense

    leaves = zip(paths, jax.tree.leaves(part.mu), jax.tree.leaves(part.nu), strict=True)
    mu, nu = zip(*(convert(*leaf) for leaf in leaves), strict=True)
    return optax.ScaleByAdamState(
        count,
        jax.tree.unflatten(jax.tree.structure(part.mu), mu),
        jax.tree.unflatten(jax.tree.structure(part.nu), nu),
    )
