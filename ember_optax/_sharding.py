"""Shardings of a whole optimizer state, for creating it where it belongs."""

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ember_optax._checks import (
    VocabAxis,
    check_row_state,
    check_vocab_axis,
    vocab_axes,
)
from ember_optax._ember import EmberState, RowState
from ember_optax._mesh import common_mesh, sharding_of
from ember_optax._paths import by_path


def opt_state_shardings(
    tx: optax.GradientTransformation,
    params: Any,
    param_shardings: Any,
    *,
    row_state: RowState = "replicated",
    vocab_axis: VocabAxis = None,
) -> Any:
    """Returns the sharding of every leaf of an optimizer state.

    Parts that mirror the parameters, such as Adam's moments, are sharded like them.
    Everything else is replicated: counts, and the state of Ember.

    Args:
      tx: any optimizer, with Ember somewhere in it or not.
      params: the parameters, as arrays or `jax.ShapeDtypeStruct`: a plain tree, linen
        boxes or an `nnx.State`. An `nnx.State` with sharding metadata needs a mesh in
        context (`jax.set_mesh`), here as anywhere.
      param_shardings: a `NamedSharding` for each parameter, in a tree whose paths are
        those of `params`; boxes may be missing.
      row_state: as given to `ember`: with `"sharded"`, `row` is sharded as the rows.
      vocab_axis: as given to `ember`.

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
    given_by_path = by_path(param_shardings)
    leaves = list(by_path(params).items())
    shardings = {path: sharding_of(path, leaf, given_by_path) for path, leaf in leaves}
    replicated = NamedSharding(common_mesh(shardings), P())

    def of_leaf(x: Any, sharding: Any, param: Any) -> Any:
        if isinstance(x, optax.MaskedNode):
            return x
        # Adafactor keeps statistics of other shapes in the places of parameters.
        return sharding if x.shape == param.shape else replicated

    state = jax.eval_shape(tx.init, params)
    mapped = optax.tree.map_params(
        # Abstractly, for the devices of the mesh in context may not be here.
        lambda placeholder: jax.eval_shape(tx.init, placeholder),
        of_leaf,
        state,
        jax.tree.unflatten(
            jax.tree.structure(params), [shardings[path] for path, _ in leaves]
        ),
        params,
        transform_non_params=lambda x: jax.tree.map(lambda _: replicated, x),
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    if row_state == "replicated":
        return mapped

    def shard_rows(part: Any) -> Any:
        if not isinstance(part, EmberState):
            return part
        tables = {path: leaf for path, leaf in leaves if path in part.tables}
        rows = {
            path: P(*shardings[path].spec[axis : axis + 1])
            for path, axis in vocab_axes(list(tables.items()), vocab_axis).items()
        }
        return part._replace(
            tables={
                path: moments._replace(row=NamedSharding(replicated.mesh, rows[path]))
                for path, moments in part.tables.items()
            }
        )

    return jax.tree.map(shard_rows, mapped, is_leaf=lambda x: isinstance(x, EmberState))
