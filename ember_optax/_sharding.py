"""Where the state of a table lives on a device mesh."""

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def replicate(x: jax.Array) -> jax.Array:
    """Pins an array to be replicated over the mesh in context.

    The mesh is the one of `jax.set_mesh`; Auto and Explicit axes are both handled.
    With no mesh in context this does nothing: pin the state with the `out_shardings`
    of `jax.jit` instead. Inside `jax.shard_map` it does nothing either, since arrays
    are local there.

    Args:
      x: array of any shape, concrete or traced.

    Returns:
      `x`, with sharding `P()` on the mesh in context.
    """
    axis_types = set(jax.sharding.get_abstract_mesh().axis_types)
    if AxisType.Manual in axis_types:
        return x
    # Each function is silently wrong or an error on the other kind of axis: reshard
    # ignores Auto axes, with_sharding_constraint only asserts on Explicit ones.
    if AxisType.Explicit in axis_types:
        x = jax.reshard(x, P())
    if AxisType.Auto in axis_types:
        x = jax.lax.with_sharding_constraint(x, P())
    return x
