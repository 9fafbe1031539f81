"""Optimizer states of two tables from that of the one table they were tied in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey

from ember_optax._axes import VocabAxis, axis_of_state, check_vocab_axis
from ember_optax._convert._adam import ember_state, moments_by_path
from ember_optax._convert._carry_over import carry_over
from ember_optax._ember import EmberState
from ember_optax._paths import by_path, listed, quoted
from ember_optax._states import StateLeaf, flatten_state, owning_param


def untie(
    opt_state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    tables: Mapping[str, str],
    *,
    vocab_axis: VocabAxis = None,
) -> Any:
    """Continues a run with tied embeddings with a table for each role.

    Each new table gets a copy of the moments of the tied one. Statistics belong to
    tokens, so it may be transposed. With the same gradient and learning rate, its next
    step equals that of the tied table. The gradients that `optax.MultiSteps` has
    accumulated are copied, and transposed where the table is. Everything else is kept
    bitwise: moments of the body, counters, schedules and hyperparameters.

    .. warning::
      Learning rates change with the roles. :func:`ember_optax.with_ember` trains a tied
      table with `head_learning_rate`; untied, the input table has
      `embed_learning_rate`, which is far larger. To keep its steps as they were,
      give both the same rate.

    Args:
      opt_state: state of the run with the tied table, of any optimizer with Ember on
        it.
      tx: the optimizer to continue with. It may be the same object if it has learning
        rates for both roles.
      params: the parameters after untying. You copy the table.
      tables: path of each new table to that of the tied one:
        `{"lm_head": "embed"}`, or `{"embed": "shared", "lm_head": "shared"}` if no
        table keeps its path. Paths are those that :func:`ember_optax.summarize` prints.
      vocab_axis: the `vocab_axis` of the Ember in `tx`. A square table needs it.

    Returns:
      A state like `tx.init(params)`. On a mesh, call this as
      :func:`ember_optax.from_adam`.

    Raises:
      ValueError: the state has no moments of the tied table, or moments of a table that
        `tx` does not train; `tx` trains a table that neither the state nor `tables`
        has; a new table has neither the shape of the tied one nor its transpose;
        another transformation has an array for the tied table, such as the mean of
        `optax.ema`. Messages name the path of the table.

    Examples:
      >>> import jax.numpy as jnp, optax, ember_optax
      >>> tx = ember_optax.with_ember(
      ...     optax.adamw(1e-3), embed_learning_rate=0.2, head_learning_rate=0.01)
      >>> params = {"embed": jnp.ones((4, 2)), "mlp": jnp.ones((2, 2))}
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> params["lm_head"] = params["embed"].T
      >>> state = ember_optax.untie(state, tx, params, {"lm_head": "embed"})
      >>> print(state.ember.tables["lm_head"].row)
      [1. 1. 1. 1.]
    """
    check_vocab_axis(vocab_axis)
    leaves, _ = flatten_state(opt_state, params, stop_at=EmberState)
    new_leaves, structure = flatten_state(tx.init(params), params, stop_at=EmberState)
    old, new = moments_by_path(leaves), moments_by_path(new_leaves)
    sources = {path: tables.get(path, path) for path in new}
    _check_paths(tables, sources, old)
    arrays = by_path(params)
    axes = {
        path: axis_of_state(path, arrays[path].shape, old[source].value, vocab_axis)
        for path, source in tables.items()
    }

    def copies(leaf: StateLeaf) -> list[StateLeaf]:
        """Copies a leaf of a tied table for each of the new ones."""
        source = owning_param(leaf.path, arrays.keys() | old.keys())
        if source is None or source not in tables.values() or not leaf.value.ndim:
            return [leaf]
        if leaf.name != "MultiStepsState.acc_grads":
            raise ValueError(
                f"The state has {leaf.name} of {quoted(source)} with the shape"
                f" {leaf.value.shape}. Only the state of Ember and accumulated"
                " gradients can be untied: take other transformations out, or start"
                " anew with tx.init."
            )
        axis = axis_of_state(source, leaf.value.shape, old[source].value, vocab_axis)
        return [
            leaf._replace(
                path=path,
                key_path=(*leaf.key_path, DictKey(path)),
                value=jnp.moveaxis(leaf.value, axis, axes.get(path, axis)),
            )
            for path in sources
            if sources[path] == source
        ]

    copied = [
        copy
        for leaf in leaves
        if not isinstance(leaf.value, EmberState)
        for copy in copies(leaf)
    ]
    others = [leaf for leaf in new_leaves if not isinstance(leaf.value, EmberState)]
    counts = {path: moments.count for path, moments in old.items()}
    values = iter(carry_over(copied, others, counts, keep_hyperparameters=True))
    moments = {path: old[source] for path, source in sources.items()}
    new_values = [
        ember_state(leaf.value, moments, vocab_axis)
        if isinstance(leaf.value, EmberState)
        else next(values)
        for leaf in new_leaves
    ]
    return jax.tree.unflatten(structure, new_values)


def _check_paths(
    tables: Mapping[str, str], sources: Mapping[str, str], old: Mapping[str, Any]
) -> None:
    """Raises ValueError unless every table has moments, and all moments are used.

    Args:
      tables: the argument of :func:`untie`.
      sources: path in the old state of each table that the optimizer trains.
      old: the moments in the old state, by path.
    """
    if unknown := tables.keys() - sources.keys():
        raise ValueError(
            f"tables has {listed(unknown)}, but the Ember in tx trains"
            f" {listed(sources)}. Give the parameters after untying, and check their"
            " labels with ember_optax.summarize."
        )
    if missing := {path for path, source in sources.items() if source not in old}:
        raise ValueError(
            f"The Ember in tx trains {listed(missing)}, but the state has the moments"
            f" of {listed(old)}: tables must map each new table to the tied one, got"
            f" {dict(tables)!r}."
        )
    if lost := old.keys() - set(sources.values()):
        raise ValueError(
            f"The state has the moments of {listed(lost)}, but the Ember in tx trains"
            f" {listed(sources)}: tables must map each new table to the tied one, got"
            f" {dict(tables)!r}."
        )
