"""A sample of a table's rows, and what all statistics check."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def check_rows(table: jax.Array, rows: jax.Array) -> None:
    """Raises ValueError for anything but a table and numbers of its rows."""
    check_table("table", table)
    if rows.ndim != 1 or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise ValueError(
            f"rows is {rows.dtype}{list(rows.shape)}, but it must be a list of"
            " integers: the numbers of the rows to follow, as in jnp.arange(100)."
        )


def check_table(name: str, x: jax.Array) -> None:
    """Raises ValueError for an array without rows and columns."""
    if x.ndim < 2:
        raise ValueError(
            f"{name} has the shape {x.shape}, but it must have rows and columns, one"
            " row per token."
        )


def check_shape(
    name: str, shape: tuple[int, ...], expected: tuple[int, ...], table: str
) -> None:
    """Raises ValueError for a shape that does not belong to a table."""
    if shape != expected:
        raise ValueError(
            f"{name} has the shape {shape}, but {expected} is needed for {table}."
            " Rows come first: give the kernel of a head as its transpose."
        )


def take(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns float32[S, D], rows of [V, *D] with flat columns, on every device."""
    explicit = jax.sharding.get_abstract_mesh().are_all_axes_explicit
    out_sharding = P() if explicit else None
    taken = x.at[rows].get(mode="fill", fill_value=0, out_sharding=out_sharding)
    return replicated(taken.astype(jnp.float32)).reshape(rows.size, -1)


def zeros(*shape: int) -> jax.Array:
    """Returns float32 zeros, of a buffer of their own: so states can be donated."""
    return jnp.zeros(shape, jnp.float32)


def row_means(x: jax.Array) -> jax.Array:
    """Returns float32[V], means of [V, *D] over all columns, on every device."""
    means = jnp.mean(x.astype(jnp.float32), axis=tuple(range(1, x.ndim)))
    return replicated(means)


def touched(grads: jax.Array) -> jax.Array:
    """Returns bool[V], which rows of [V, *D] have a gradient, on every device."""
    return replicated(jnp.any(grads != 0, axis=tuple(range(1, grads.ndim))))


def replicated(x: jax.Array) -> jax.Array:
    """Puts an array on every device of the mesh in context, if there is one."""
    axis_types = jax.sharding.get_abstract_mesh().axis_types
    # Each function does nothing, or raises, on the other kind of axis.
    if AxisType.Explicit in axis_types:
        x = jax.reshard(x, P())
    if AxisType.Auto in axis_types:
        x = jax.lax.with_sharding_constraint(x, P())
    return x


def products(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns an einsum in full float32, which accelerators do not give by default."""
    return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST)


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a / b, and NaN where b is 0: there is nothing to be said."""
    return jnp.where(b == 0, jnp.nan, a / jnp.where(b == 0, 1, b))
