"""Shardings of a whole optimizer state."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ember_optax._ember import EmberState
from ember_optax._mesh import common_mesh, find_shardings
from ember_optax._paths import by_path
from ember_optax._states import StateLeaf, flatten_state, owning_param


def opt_state_shardings(
    tx: optax.GradientTransformation,
    params: Any,
    param_shardings: Any,
) -> Any:
    """Finds the sharding of every leaf of an optimizer state.

    An array with the shape of its parameter, such as a moment of Adam, is sharded like
    the parameter. A stack of such arrays is sharded like it along all axes but the
    first. Everything else is replicated: counts, statistics of other shapes, and the
    state of Ember.

    Args:
      tx: any optimizer, with Ember somewhere in it or not.
      params: the parameters, as arrays or `jax.ShapeDtypeStruct`: a plain tree, linen
        boxes or an `nnx.State`. An `nnx.State` with sharding metadata requires a mesh
        in context (`jax.set_mesh`).
      param_shardings: a `NamedSharding` for each parameter, in a tree whose paths are
        those of `params`, or a prefix of it. Boxes may be left out.

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
    leaves = by_path(params)
    shardings = find_shardings(leaves, param_shardings)
    mesh = common_mesh(shardings)
    replicated = NamedSharding(mesh, P())

    def of_leaf(leaf: StateLeaf) -> Any:
        if isinstance(leaf.value, EmberState):
            return jax.tree.map(lambda _: replicated, leaf.value)
        path = owning_param(leaf.path, leaves)
        if path is None:
            return replicated
        shape, spec = leaves[path].shape, shardings[path].spec
        if leaf.value.shape == shape:
            return shardings[path]
        if leaf.value.shape[1:] == shape:  # a stack, such as the history of L-BFGS
            return NamedSharding(mesh, P(None, *spec))
        return replicated

    state = jax.eval_shape(tx.init, params)
    found, structure = flatten_state(state, params, stop_at=EmberState)
    return jax.tree.unflatten(structure, map(of_leaf, found))
