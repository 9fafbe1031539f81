"""Optimizer states that change their optimizer: from Adam to Ember and back."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from ember_optax import _rule
from ember_optax._checks import Scalar, axis_of_tokens, check_hyperparameters
from ember_optax._convert._parts import (
    ByPath,
    Dense,
    Factored,
    common_count,
    counters,
    is_counter,
    map_parts,
    moments_by_path,
)
from ember_optax._ember import EmberState
from ember_optax._mesh import pin
from ember_optax._paths import by_path, quoted


def from_adam(
    adam_state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    *,
    adam_b2: Scalar = 0.999,
    ember_b2: Scalar = 0.999,
) -> Any:
    r"""Returns the state with which a run of Adam goes on with Ember on its tables.

    For every table that `tx` gives to Ember, Adam's second moment is folded,

    .. math::

      row_i = c \, mean_j \, \nu_{ij}, \quad col_j = c \, mean_i \, \nu_{ij}, \quad
      c = \frac{1 - ember\_b2^t}{1 - adam\_b2^t}

    and the count stays t, so that both are corrected for their bias to the same means.
    With equal b2, c is 1 and this is the state that Ember would have after the same
    gradients. Everything else that is Adam's before and after is kept, and schedules
    go on at their step. What is left is new, as `tx.init` makes it: a hyperparameter of
    `optax.inject_hyperparams` is that of `tx`, a gradient that `optax.MultiSteps` has
    not yet used is lost.

    Args:
      adam_state: state of any optimizer made of `optax.scale_by_adam`: `optax.adam`,
        `optax.adamw`, chains around them, several of them in `optax.multi_transform`.
        Tables that are Ember's already stay so.
      tx: the optimizer to go on with, such as `optax.multi_transform` over
        `{"table": ember, "body": adamw}`.
      params: the parameters, in the container that both optimizers see.
      adam_b2: decay of the Adam that trained the tables.
      ember_b2: decay of the Ember in `tx`. Neither decay is part of a state. They need
        not be given where they are equal.

    Returns:
      A state like `tx.init(params)`. A square table has its tokens on the first axis.
      On a mesh in context (`jax.set_mesh`) `row` and `col` are pinned as Ember pins
      them; there use this under `jax.jit`, with
      `out_shardings=opt_state_shardings(...)` on Auto axes.

    Raises:
      ValueError: `adam_state` has no moments of Adam, or twice those of a parameter, or
        not those of the parameters that `tx` trains; `tx` has no Ember; steps differ
        where there is only one count for them; a decay lies outside [0, 1).

    Examples:
      >>> import jax, jax.numpy as jnp, optax, ember_optax
      >>> params = {"embed": jnp.ones((4, 2)), "mlp": jnp.ones((2, 2))}
      >>> adamw = optax.adamw(1e-3)
      >>> _, adam_state = adamw.update(params, adamw.init(params), params)
      >>> tx = optax.multi_transform(
      ...     {"table": ember_optax.ember(1e-2), "body": optax.adamw(1e-3)},
      ...     ember_optax.label_token_tables)
      >>> state = ember_optax.from_adam(adam_state, tx, params)
      >>> print(state.inner_states["table"].inner_state[0].tables["embed"].row)
      [0.001 0.001 0.001 0.001]
    """
    return _move(adam_state, tx, params, Dense, Factored, adam_b2, ember_b2)


def to_adam(
    ember_state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    *,
    adam_b2: Scalar = 0.999,
    ember_b2: Scalar = 0.999,
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
      adam_b2: decay of the Adam in `tx`.
      ember_b2: decay of the Ember that trained the tables.

    Returns:
      A state like `tx.init(params)`.

    Raises:
      ValueError: as :func:`from_adam`, with the roles exchanged.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, ember_optax
      >>> params = {"embed": jnp.ones((4, 2))}
      >>> tx = ember_optax.ember(1e-2)
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> ember_optax.to_adam(state, optax.adamw(1e-3), params)[0].nu["embed"][0]
      Array([0.001, 0.001], dtype=float32)
    """
    return _move(ember_state, tx, params, Factored, Dense, adam_b2, ember_b2)


def _move(
    state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    source: type,
    target: type,
    adam_b2: Scalar,
    ember_b2: Scalar,
) -> Any:
    """Returns the state of `tx` with all that `state` knows of the parameters.

    Both directions are one: what part of `tx` ever wants the moments of a parameter
    gets those of what part of `state` ever has them.
    """
    check_hyperparameters(adam_b2, 0.0, "all")
    check_hyperparameters(ember_b2, 0.0, "all")
    template = tx.init(params)
    old, new = moments_by_path(state), moments_by_path(template)
    _check_kind("given state", old, source)
    _check_kind("state of tx", new, target)
    _check_same_parameters(old, new)
    # Without a schedule, the steps that Adam or Ember have taken.
    steps = common_count(counters(state) or {p: m.count for p, m in old.items()})

    def convert(part: Any) -> Any:
        if isinstance(part, EmberState):
            return _to_ember_part(part, old, adam_b2, ember_b2)
        return _to_adam_part(part, old, adam_b2, ember_b2)

    return _with_steps(map_parts(convert, template), steps)


def _to_ember_part(
    part: EmberState, old: ByPath, adam_b2: Scalar, ember_b2: Scalar
) -> EmberState:
    """Fills a new state of Ember."""
    tables = {}
    for path, empty in part.tables.items():
        found = old[path]
        if isinstance(found, Dense):
            axis = axis_of_tokens(path, found.nu.shape, empty)
            count, dtype = found.count, empty.row.dtype
            scale = _scale((ember_b2, count), (adam_b2, count), dtype)
            moments = _rule.fold(found.nu, scale, axis)
        else:
            moments = found.moments
        # Where tx.init has put them, as far as Explicit axes tell it.
        tables[path] = jax.tree.map(
            lambda x, y: pin(x, jax.typeof(y).sharding.spec, None), moments, empty
        )
    return EmberState(common_count({p: old[p].count for p in tables}), tables)


def _to_adam_part(
    part: optax.ScaleByAdamState, old: ByPath, adam_b2: Scalar, ember_b2: Scalar
) -> optax.ScaleByAdamState:
    """Fills a new state of Adam."""
    paths = [path for path, _ in list(by_path(part.nu).items())]
    if not paths:  # an optimizer that no parameter is routed to
        return part
    counts = {p: old[p].count for p in paths if isinstance(old[p], Dense)}
    count = common_count(counts or {p: old[p].count for p in paths})

    def convert(path: str, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = old[path]
        if isinstance(found, Dense):
            _check_shape(path, found.nu, nu)
            return found.mu.astype(mu.dtype), found.nu.astype(nu.dtype)
        axis = axis_of_tokens(path, nu.shape, found.moments)
        dtype = found.moments.row.dtype
        scale = _scale((adam_b2, count), (ember_b2, found.count), dtype)
        dense = _rule.unfold(found.moments, scale, axis).astype(nu.dtype)
        if jax.sharding.get_abstract_mesh().are_all_axes_explicit:
            dense = pin(dense, jax.typeof(nu).sharding.spec, None)
        return mu, dense

    leaves = zip(paths, jax.tree.leaves(part.mu), jax.tree.leaves(part.nu), strict=True)
    mu, nu = zip(*(convert(*leaf) for leaf in leaves), strict=True)
    return optax.ScaleByAdamState(
        count,
        jax.tree.unflatten(jax.tree.structure(part.mu), mu),
        jax.tree.unflatten(jax.tree.structure(part.nu), nu),
    )


def _scale(
    new: tuple[Scalar, jax.Array], old: tuple[Scalar, jax.Array], dtype: DTypeLike
) -> jax.Array:
    """Returns what keeps the corrected moment under another b2 and count."""
    ratio = _rule.bias_correction(*new, dtype) / _rule.bias_correction(*old, dtype)
    return jnp.where(old[1] > 0, ratio, 0)  # before the first step there is none


def _with_steps(state: Any, steps: jax.Array) -> Any:
    """Sets the counts of schedules."""

    def convert(part: Any) -> Any:
        if is_counter(part):
            return part._replace(count=jnp.array(steps))
        if isinstance(part, optax.InjectStatefulHyperparamsState):
            return part._replace(
                count=jnp.array(steps),
                hyperparams_states=_with_steps(part.hyperparams_states, steps),
                inner_state=_with_steps(part.inner_state, steps),
            )
        return part

    return jax.tree.map(
        convert,
        state,
        is_leaf=lambda x: (
            is_counter(x) or isinstance(x, optax.InjectStatefulHyperparamsState)
        ),
    )


def _check_kind(where: str, moments: ByPath, kind: type) -> None:
    if not any(isinstance(found, kind) for found in moments.values()):
        owners = {Dense: "Adam", Factored: "Ember"}
        other = next(iter({Dense, Factored} - {kind}))
        raise ValueError(
            f"The {where} has the moments of {_some(moments)}, all of them of"
            f" {owners[other]}, but some of {owners[kind]} are needed: from_adam goes"
            " from Adam to Ember, to_adam from Ember to Adam."
        )


def _check_same_parameters(old: ByPath, new: ByPath) -> None:
    if missing := new.keys() - old.keys():
        raise ValueError(
            f"tx trains {_some(missing)} with Adam or Ember, but the given state has"
            f" the moments of {_some(old)} only. Give the state, the optimizer and the"
            " parameters of one model."
        )
    if unused := old.keys() - new.keys():
        raise ValueError(
            f"The given state has moments of {_some(unused)}, but tx trains only"
            f" {_some(new)} with Adam or Ember. Train all that Adam or Ember have"
            " trained with one of them, or start anew with tx.init."
        )


def _check_shape(path: str, found: jax.Array, expected: jax.Array) -> None:
    if found.shape != expected.shape:
        raise ValueError(
            f"The given state has moments of {quoted(path)} with the shape"
            f" {found.shape}, but the parameter has {expected.shape}. Give the state"
            " and the parameters of one model."
        )


def _some(paths: Any) -> str:
    """Lists the first few."""
    listed = sorted(map(quoted, paths))
    more = [f"{len(listed) - 5} more"] if len(listed) > 5 else []
    return ", ".join(listed[:5] + more)
