"""The optimizer of a whole model: Ember on its token tables, another on its body."""

# Keep annotations as strings; otherwise help() prints every type alias in full.
from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import tree_map_with_path

from ember_optax import _checks
from ember_optax._axes import VocabAxis, check_vocab_axis
from ember_optax._decay import Scalar, ScalarOrSchedule, adafactor_decay
from ember_optax._ember import EmberState, Measured, TableRule, init_state
from ember_optax._labels import label_token_tables
from ember_optax._paths import (
    by_path,
    is_placeholder,
    masked_paths,
    nearest,
    normalize,
    quoted,
)


class WithEmberState(NamedTuple):
    """State of :func:`with_ember`."""

    ember: EmberState  # of all token tables
    body: Any  # state of the optimizer of everything else


def with_ember(
    body: optax.GradientTransformation,
    *,
    embed_learning_rate: optax.ScalarOrSchedule | None = None,
    head_learning_rate: optax.ScalarOrSchedule | None = None,
    other_learning_rates: Mapping[str, optax.ScalarOrSchedule] | None = None,
    b2: ScalarOrSchedule = adafactor_decay(),  # noqa: B008  # immutable
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    max_norm: Scalar | None = None,
    vocab_size: int | tuple[int, ...] | None = None,
    labels: Any | Callable[[optax.Params], Any] | None = None,
    vocab_axis: VocabAxis = None,
    param_shardings: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains the token tables of a model with Ember and its body with `body`.

    Token tables are input embeddings and language-model heads. Adam's two V x D moments
    of each become V + D float32 numbers, by the rule of
    :func:`ember_optax.scale_by_ember`.

    The updates are, to rounding, those of

    .. code-block:: python

      optax.chain(
          optax.clip_by_global_norm(max_norm),
          optax.multi_transform(
              {"embed": ember(embed_learning_rate, ...),
               "head": ember(head_learning_rate, ...),
               "body": body},
              label_token_tables))

    but clipping costs no pass over the tables: their part of the norm comes from the
    row means that Ember needs anyway, and the scale goes into their update. On a mesh
    one all-reduce serves all tables and the norm.

    .. warning::
      These learning rates are for training from scratch. To finetune a trained model,
      give its tables the learning rate of the body's AdamW, at most 0.001 of the
      table's root mean square, or freeze them.

    .. warning::
      One gradient of 1e31 makes the norm infinite, and clipping then scales the whole
      step to 0, as in Optax. To skip such steps without touching the state, wrap the
      optimizer in `optax.MultiSteps(tx, 1,
      should_skip_update_fn=optax.skip_large_updates)` (with
      `functools.partial(..., max_squared_norm=...)`). `optax.apply_if_finite` does not
      help: the gradient is finite.

    Args:
      body: optimizer of all parameters that are not token tables, such as
        `optax.adamw(...)` or `optax.contrib.muon(...)`. Extra arguments of `update`
        reach it. It sees the tables as `optax.MaskedNode`, as in `optax.masked`.
      embed_learning_rate: learning rate of input tables, a number or a schedule.
      head_learning_rate: learning rate of heads. A tied table is a head.
      other_learning_rates: further tables, by a regular expression that is searched in
        their `/`-joined path, each with its learning rate: `{"bigram_embed": 0.6}`. The
        first pattern that matches decides, before every other label.
      b2: decay of the statistics in [0, 1), or a schedule from the count of earlier
        steps to one.
      eps: added to the root of the second moment, positive.
      weight_decay: decoupled weight decay of the tables, which their learning rate
        multiplies, not negative. The body has its own.
      max_norm: largest global norm of the gradients of tables and body together,
        positive; None does not clip.
      vocab_size: number of tokens, or several where a model has several vocabularies:
        with it, shapes tell what a table is. See
        :func:`ember_optax.label_token_tables`.
      labels: a tree like the parameters, or a function from the parameters to one, with
        "embed", "head" and "body", instead of :func:`ember_optax.label_token_tables`.
        It may leave a table to the body.
      vocab_axis, param_shardings: see :func:`ember_optax.scale_by_ember`.

    Returns:
      The optimizer. Its state is a :class:`WithEmberState`. Inside `optax.masked` or
      `optax.multi_transform` it trains the parameters that they leave to it.

    Raises:
      ValueError: when built, for an argument that is out of range. In `init`, for a
        model without a token table, for a table whose role has no learning rate, and
        for a pattern that matches no parameter. In `update`, for gradients that do not
        fit the state, and for a weight decay without `params`. Messages name the
        parameter and how to fix it.

    Examples:
      >>> import jax.numpy as jnp, optax, ember_optax
      >>> def peak(rate):
      ...   return optax.warmup_cosine_decay_schedule(0.0, rate, 1_000, 20_000)
      >>> tx = ember_optax.with_ember(
      ...     optax.adamw(peak(1e-3), b2=0.95),
      ...     embed_learning_rate=peak(1.0),
      ...     head_learning_rate=peak(0.004),
      ...     vocab_size=512,
      ...     max_norm=1.0)
      >>> params = {"embed": jnp.ones((512, 8)), "mlp": jnp.ones((8, 8)),
      ...           "lm_head": jnp.ones((8, 512))}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> sorted(state.ember.tables)
      ['embed', 'lm_head']

      To log learning rates, `optax.inject_hyperparams` needs to know which arguments
      are not numbers:

      >>> tx = optax.inject_hyperparams(
      ...     ember_optax.with_ember,
      ...     static_args=("body", "vocab_size", "labels", "vocab_axis"),
      ...     hyperparam_dtype=jnp.float32,
      ... )(optax.adamw(peak(1e-3)), embed_learning_rate=peak(1.0),
      ...   head_learning_rate=peak(0.004), vocab_size=512)
      >>> float(tx.init(params).hyperparams["head_learning_rate"])
      0.0

    References:
      `Token Geometry <https://arxiv.org/abs/2607.01455>`_, 2026
    """
    others = dict(other_learning_rates or {})
    rates = {"embed": embed_learning_rate, "head": head_learning_rate}
    rates |= {_other(pattern): rate for pattern, rate in others.items()}
    patterns = list(others)
    _check_arguments(body, rates, patterns, vocab_size, labels)
    _checks.check_hyperparameters(b2, eps)
    _checks.check_weight_decay(weight_decay)
    if max_norm is not None:
        _checks.check_max_norm(max_norm)
    check_vocab_axis(vocab_axis)
    body = optax.with_extra_args_support(body)
    rule = TableRule(b2, eps, vocab_axis, param_shardings)
    label_fn = _label_fn(labels, vocab_size, patterns)
    find_roles = functools.partial(_find_roles, label_fn, patterns)
    decays = not isinstance(weight_decay, (int, float)) or weight_decay > 0

    def init_fn(params: optax.Params) -> WithEmberState:
        if is_placeholder(params):  # of optax.tree.map_params
            return WithEmberState(init_state(rule, params), body.init(params))
        roles = find_roles(params)
        tables = _tables(params, roles)
        _check_rates(tables, rates)
        return WithEmberState(
            rule.init({path: table for path, (_, table) in tables.items()}),
            body.init(_body(params, roles)),
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WithEmberState]:
        _checks.check_state(state, WithEmberState)
        if decays and params is None:
            raise ValueError(
                "with_ember has a weight_decay, which needs the parameters: pass params"
                " to update."
            )
        roles = find_roles(updates)
        tables = _tables(updates, roles)
        measured = rule.measure({p: x for p, (_, x) in tables.items()}, state.ember)
        body_grads, scale = _body(updates, roles), None
        if max_norm is not None:
            measured, body_grads, scale = _clip(measured, body_grads, max_norm)
        body_updates, body_state = body.update(
            body_grads,
            state.body,
            None if params is None else _body(params, roles),
            **extra_args,
        )
        steps, ember_state = rule.update(measured, state.ember, scale)
        values = by_path(params) if decays else {}
        table_updates = {}
        for path, step in steps.items():
            role, grad = tables[path]
            rate = rates[role]
            if callable(rate):
                rate = rate(state.ember.count)
            if decays:
                step += weight_decay * values[path].astype(step.dtype)
            step *= -jnp.asarray(rate, step.dtype)
            table_updates[path] = step.astype(grad.dtype)
        merged = _merge(updates, roles, table_updates, body_updates)
        return merged, WithEmberState(ember_state, body_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _label_fn(
    labels: Any, vocab_size: Any, patterns: list[str]
) -> Callable[[Any], Any]:
    """Makes a function from a tree to its labels, in that tree or a prefix of it."""
    if labels is None:
        return functools.partial(
            label_token_tables,
            vocab_size=vocab_size,
            include=patterns,
            embed="embed",
            head="head",
        )
    if callable(labels):
        return labels
    given = by_path(labels)

    def look_up(key_path: Any, _: Any) -> str:
        # By name, because Flax NNX has other containers at init than at update.
        path = normalize(key_path)
        prefix = nearest(path, given)
        if prefix is None:
            raise ValueError(
                f"labels has no label for {quoted(path)}: give one for each parameter,"
                " or for a subtree of them."
            )
        return given[prefix]

    return functools.partial(tree_map_with_path, look_up)


def _other(pattern: str) -> str:
    """The role of tables with a learning rate of their own, as messages show it."""
    return f"other_learning_rates[{pattern!r}]"


def _find_roles(label_fn: Callable[[Any], Any], patterns: list[str], tree: Any) -> Any:
    """Finds the key of its learning rate for each table; "body" for all else."""
    paths = by_path(tree)
    for pattern in patterns:
        matches = any(re.search(pattern, path) for path in paths)
        if paths and not matches and not masked_paths(tree):
            raise ValueError(
                f"other_learning_rates has {pattern!r}, which matches no parameter. It"
                f" is searched in paths such as {', '.join(list(paths)[:3])}."
            )

    def role(key_path: Any, label: str) -> str:
        path = normalize(key_path)
        for pattern in patterns:
            if re.search(pattern, path):
                return _other(pattern)
        if label not in ("embed", "head", "body"):
            raise ValueError(
                f"labels gives {quoted(path)} the label {label!r}, but it must be"
                ' "embed", "head" or "body". With label_token_tables, pass'
                ' embed="embed" and head="head".'
            )
        return label

    return tree_map_with_path(role, label_fn(tree))


def _tables(tree: Any, roles: Any) -> dict[str, tuple[str, Any]]:
    """Finds role and array of every token table, by path."""
    all_roles = jax.tree.leaves(jax.tree.broadcast(roles, tree))
    return {
        path: (role, leaf)
        for (path, leaf), role in zip(by_path(tree).items(), all_roles, strict=True)
        if role != "body"
    }


def _body(tree: Any, roles: Any) -> Any:
    """Masks the token tables."""
    return jax.tree.map(
        lambda role, x: x if role == "body" else optax.MaskedNode(), roles, tree
    )


def _merge(
    updates: Any, roles: Any, table_updates: Mapping[str, Any], body_updates: Any
) -> Any:
    leaves = [table_updates.get(path, x) for path, x in by_path(updates).items()]
    tables = jax.tree.structure(updates).unflatten(leaves)
    return jax.tree.map(
        lambda role, body, table: body if role == "body" else table,
        roles,
        body_updates,
        tables,
    )


def _clip(
    measured: Measured, body_grads: Any, max_norm: Scalar
) -> tuple[Measured, Any, jax.Array]:
    """Scales the body's gradients, and finds the scale that tables still need."""
    # Without a barrier XLA fuses the row means with the sum of all squares below and
    # reads every gradient again.
    squares = jax.lax.optimization_barrier(measured.squares)
    measured = measured._replace(squares=squares)
    norm = _global_norm(measured, body_grads)
    scale = jnp.where(norm < max_norm, 1, max_norm / norm)
    body_grads = jax.tree.map(lambda x: x * scale.astype(x.dtype), body_grads)
    return measured, body_grads, scale


def _global_norm(measured: Measured, body_grads: Any) -> jax.Array:
    """Computes the norm of all gradients, that of the tables from their row means."""
    squares = [optax.tree.norm(body_grads, squared=True)]
    for path, grad in measured.grads.items():
        n_columns = grad.size / grad.shape[measured.axes[path]]
        squares.append(jnp.sum(measured.squares[path].row) * n_columns)
    is_double = any(x.dtype == jnp.float64 for x in squares)
    dtype = jnp.float64 if is_double else jnp.float32
    return jnp.sqrt(sum(x.astype(dtype) for x in squares))


def _check_arguments(
    body: Any,
    rates: Mapping[str, Any],
    patterns: list[str],
    vocab_size: Any,
    labels: Any,
) -> None:
    if not (hasattr(body, "init") and hasattr(body, "update")):
        raise ValueError(
            f"body must be an Optax optimizer such as optax.adamw(1e-3), got {body!r}."
        )
    for pattern in patterns:
        _checks.check_pattern("other_learning_rates", pattern)
    for role, rate in rates.items():
        name = f"{role}_learning_rate" if role in ("embed", "head") else role
        if rate is not None or name == role:
            _checks.check_learning_rate(name, rate)
    if isinstance(vocab_size, jax.Array):
        raise ValueError(
            "vocab_size is a JAX array, but it must be an int. With"
            " optax.inject_hyperparams, pass static_args=('body', 'vocab_size',"
            " 'labels', 'vocab_axis')."
        )
    if labels is not None and vocab_size is not None:
        raise ValueError(
            "vocab_size only serves the default labels. With labels=, pass it to your"
            " own function: functools.partial(label_token_tables, vocab_size=...)."
        )


def _check_rates(
    tables: Mapping[str, tuple[str, Any]], rates: Mapping[str, Any]
) -> None:
    for path, (role, _) in tables.items():
        if rates[role] is None:
            kind = "an input table" if role == "embed" else "a head"
            raise ValueError(
                f"{quoted(path)} is {kind}, but with_ember has no {role}_learning_rate:"
                f" pass it, or label the table 'body' with labels=."
            )
