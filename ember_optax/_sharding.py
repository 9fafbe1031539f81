"""Shardings of a whole optimizer state, for creating it where it belongs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ember_optax._axes import VocabAxis, axis_of_state, check_vocab_axis
from ember_optax._checks import check_row_state
from ember_optax._ember import EmberState, RowState
from ember_optax._mesh import common_mesh, find_shardings
from ember_optax._paths import by_path, to_key
from ember_optax._states import StateLeaf, leaves_of, owner

if TYPE_CHECKING:
    from ember_optax._types import Tree


def opt_state_shardings(
    tx: optax.GradientTransformation,
    params: Any,
    param_shardings: Any,
    *,
    row_state: RowState = "replicated",
    vocab_axis: VocabAxis = None,
) -> Tree[NamedSharding]:
    """Returns the sharding of every leaf of an optimizer state.

    What has the shape of its parameter, such as Adam's moments, is sharded like it, and
    so is a stack of such arrays, along all axes but the first. Everything else is
    replicated: counts, statistics of other shapes, and the state of Ember.

    Args:
      tx: any optimizer, with Ember somewhere in it or not.
      params: the parameters, as arrays or `jax.ShapeDtypeStruct`: a plain tree, linen
        boxes or an `nnx.State`. An `nnx.State` with sharding metadata needs a mesh in
        context (`jax.set_mesh`), here as anywhere.
      param_shardings: a `NamedSharding` for each parameter, in a tree whose paths are
        those of `params`, or a prefix of it; boxes may be missing.
      row_state: as given to `ember`: with `"sharded"`, `row` is sharded as the rows.
      vocab_axis: as given to `ember`. With `row_state="sharded"`, a square table needs
        it.

    Returns:
      A tree of `NamedSharding` with the structure of `tx.init(params)`, to be used as
      `jax.jit(tx.init, out_shardings=...)`.

    Raises:
      ValueError: a parameter has no sharding, or one that does not fit its shape. The
        message names the parameter.

    Examples:
      >>> import jax, jax.numpy as jnp, ember_optax
      >>> from jax.sharding import NamedSharding, PartitionSpec as P
      >>> params = {"embed": jnp.ones((8, 4))}
      >>> mesh = jax.make_mesh((1,), ("fsdp",))
      >>> shardings = {"embed": NamedSharding(mesh, P("fsdp", None))}
      >>> tx = ember_optax.ember(1e-2)
      >>> out = ember_optax.opt_state_shardings(tx, params, shardings)
      >>> state = jax.jit(tx.init, out_shardings=out)(params)
      >>> state[0].tables["embed"].row.sharding.spec
      P()
    """
    check_row_state(row_state)
    check_vocab_axis(vocab_axis)
    leaves = by_path(params)
    shardings = find_shardings(leaves, param_shardings)
    mesh = common_mesh(shardings)
    replicated = NamedSharding(mesh, P())
    keys = {to_key(path): path for path in leaves}

    def of_ember(state: EmberState) -> EmberState:
        all_replicated = jax.tree.map(lambda _: replicated, state)
        if row_state == "sharded":
            tables = all_replicated.tables
            for key, moments in state.tables.items():
                path = keys[key]
                shape = leaves[path].shape
                axis = axis_of_state(path, shape, moments, vocab_axis)
                row = NamedSharding(mesh, P(*shardings[path].spec[axis : axis + 1]))
                tables[key] = tables[key]._replace(row=row)
        return all_replicated

    def of_leaf(leaf: StateLeaf) -> Any:
        if isinstance(leaf.value, EmberState):
            return of_ember(leaf.value)
        path = owner(leaf.path, leaves)
        if path is None:
            return replicated
        shape, spec = leaves[path].shape, shardings[path].spec
        if leaf.value.shape == shape:
            return shardings[path]
        if leaf.value.shape[1:] == shape:  # a memory of several steps
            return NamedSharding(mesh, P(None, *spec))
        return replicated

    state = jax.eval_shape(tx.init, params)
    found = leaves_of(state, params, whole=EmberState)
    structure = jax.tree.structure(state, is_leaf=lambda x: isinstance(x, EmberState))
    return jax.tree.unflatten(structure, map(of_leaf, found))
