"""Stochastic rounding of parameters in half precision."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ember_optax import _checks
from ember_optax._paths import by_path


class StochasticRoundingState(NamedTuple):
    """State of :func:`stochastic_rounding`."""

    count: jax.Array  # int32[], steps taken


def stochastic_rounding(seed: int) -> optax.GradientTransformationExtraArgs:
    r"""Makes `optax.apply_updates` round half-precision parameters stochastically.

    Late in training, updates of a bfloat16 table are less than half a unit in its last
    place, and rounding to the nearest loses them. Here a sum :math:`\theta + u` between
    two neighbors :math:`a < b` becomes b with probability
    :math:`(\theta + u - a) / (b - a)`, so its expected value is exact and no float32
    copy of the parameters is needed.

    Put it last in a chain. It returns float32 updates for bfloat16 and float16
    parameters, with which `optax.apply_updates` arrives at the chosen neighbor. All
    other parameters get their updates unchanged.

    The random bits are a hash of the seed, the step, the path of the parameter and the
    position in it. They need no memory and no collective, and are the same on every
    mesh and after a restart; inside `jax.shard_map`, where positions are those of a
    shard, they are not.

    Args:
      seed: of the random bits, an int from 0 to 2^32 - 1.

    Returns:
      A transformation whose state is a count of steps. Its `update` needs `params`.

    Raises:
      ValueError: when built, for a seed out of range; in `update`, without `params`.

    Examples:
      >>> import jax.numpy as jnp, optax, ember_optax
      >>> tx = optax.chain(ember_optax.ember(1e-2), ember_optax.stochastic_rounding(0))
      >>> params = {"embed": jnp.ones((4, 2), jnp.bfloat16)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)

    References:
      Gupta et al., `Deep Learning with Limited Numerical Precision
      <https://arxiv.org/abs/1502.02551>`_, 2015, section 3
    """
    _checks.check_seed(seed)

    def init_fn(params: optax.Params) -> StochasticRoundingState:
        del params
        return StochasticRoundingState(jnp.zeros([], jnp.int32))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, StochasticRoundingState]:
        del extra_args
        _checks.check_state(state, StochasticRoundingState)
        if params is None:
            raise ValueError(
                "stochastic_rounding got no params, but it must know what the updates"
                " are added to: pass params to update."
            )
        values = by_path(params)
        count = cast(jax.Array, optax.safe_increment(state.count))
        rounded = [
            _round(values[path], update, _key(seed, path, count))
            for path, update in by_path(updates).items()
        ]
        structure = jax.tree.structure(updates)
        return jax.tree.unflatten(structure, rounded), StochasticRoundingState(count)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _round(value: jax.Array, update: jax.Array, key: jax.Array) -> jax.Array:
    """Computes the update that leads from a value to a neighbor of the exact sum."""
    if value.dtype not in (jnp.bfloat16, jnp.float16):
        return update
    old = value.astype(jnp.float32)
    exact = old + update.astype(jnp.float32)
    nearest = exact.astype(value.dtype)
    error = exact - nearest.astype(jnp.float32)
    infinity = jnp.where(error > 0, jnp.inf, -jnp.inf).astype(value.dtype)
    other = jnp.nextafter(nearest, infinity)
    gap = jnp.abs(other.astype(jnp.float32) - nearest.astype(jnp.float32))
    # uniform is in [0, 1). Non-finite values compare False and are left unchanged.
    uniform = _hash(value.shape, key).astype(jnp.float32) * 2.0**-32
    is_other = (uniform * gap < jnp.abs(error)) & jnp.isfinite(other)
    return jnp.where(is_other, other, nearest).astype(jnp.float32) - old


def _key(seed: int, path: str, count: jax.Array) -> jax.Array:
    """Returns uint32[] for one step of one parameter."""
    constant = zlib.crc32(path.encode(), seed)
    return _mix(_mix(count.astype(jnp.uint32)) ^ jnp.uint32(constant))


def _hash(shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """Returns uint32 random bits for each position.

    Threefry, which `jax.random` uses, takes ten times the arithmetic: on a TPU more
    time than the step itself.
    """
    bits = key
    for axis in range(len(shape)):
        position = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        bits = _mix(bits ^ (position * jnp.uint32(0x9E3779B9)))
    return bits


def _mix(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3: every bit of x changes half of the result's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
