"""The decay b2 of the statistics: a number, or a schedule that changes it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

# The logarithm of a decay of 0: exp(-64) is nothing next to 1.
NOTHING = -64.0

Scalar = float | jax.Array
ScalarOrSchedule = Scalar | Callable[[ArrayLike], ArrayLike]


class Remaining(NamedTuple):
    """Product of all b2 so far: the share of a statistic that is its zero at the start.

    Its logarithm is added up as Kahan does. A plain float32 would be off by more than
    the statistics are.
    """

    log: jax.Array  # float32[], sum of log b2
    error: jax.Array  # float32[], what rounding has added to `log`


class Decay(NamedTuple):
    """What one step does to the statistics."""

    b2: jax.Array
    rate: jax.Array  # 1 - b2
    correction: jax.Array  # 1 - the product of all b2 so far


@dataclasses.dataclass(frozen=True)
class AdafactorDecay:
    """The schedule of :func:`adafactor_decay`."""

    exponent: float

    def __call__(self, count: ArrayLike) -> jax.Array:
        return 1 - self.rate(count)

    def rate(self, count: ArrayLike) -> jax.Array:
        """Returns 1 - b2 with all digits: float32 keeps few of them in a b2 near 1."""
        return (jnp.asarray(count, float) + 1) ** -self.exponent


def adafactor_decay(exponent: float = 0.8) -> Callable[[ArrayLike], jax.Array]:
    r"""Returns a schedule for `b2` that averages over more and more steps.

    .. math:: b_{2,t} = 1 - t^{-exponent}, \quad t = count + 1

    Step t averages over about the last :math:`t^{exponent}` steps. The first decay is
    0, so nothing is left of the zeros that the statistics began with.

    Args:
      exponent: how fast the average grows, in (0, 1].

    Returns:
      A function from the number of earlier steps to a decay, float32[].

    Raises:
      ValueError: `exponent` lies outside (0, 1].

    Examples:
      >>> import ember_optax
      >>> b2 = ember_optax.adafactor_decay()
      >>> [f"{b2(count):.3f}" for count in (0, 1, 9, 99)]
      ['0.000', '0.426', '0.842', '0.975']
      >>> tx = ember_optax.ember(1e-2, b2=b2)

    References:
      Shazeer and Stern, `Adafactor <https://arxiv.org/abs/1804.04235>`_, 2018,
      section 7.2
    """
    if not 0 < exponent <= 1:
        raise ValueError(
            f"exponent is {exponent}, but it must lie in (0, 1]: try 0.8, with which"
            " the average grows more slowly than the run."
        )
    return AdafactorDecay(exponent)


def init(dtype: DTypeLike) -> Remaining:
    """Returns the product before the first step."""
    # No array twice, or it could not be donated.
    return Remaining(jnp.zeros([], dtype), jnp.zeros([], dtype))


def step(
    b2: ScalarOrSchedule, remaining: Remaining, count: jax.Array
) -> tuple[Decay, Remaining]:
    """Returns what the next step does, and the product after it.

    Args:
      b2: decay of the statistics.
      remaining: of the last step.
      count: int32 scalar, number of earlier steps.
    """
    now, rate = _split(b2, count, remaining.log.dtype)
    remaining = multiply(remaining, rate)
    return Decay(now, rate, correction(remaining)), remaining


def constant(b2: Scalar, count: jax.Array, dtype: DTypeLike) -> Decay:
    """Returns what step `count` does if b2 has always been the same."""
    return Decay(*_split(b2, count, dtype), correction(after(b2, count, dtype)))


def after(b2: ScalarOrSchedule, count: jax.Array, dtype: DTypeLike) -> Remaining:
    """Returns the product of the first `count` decays."""
    if not callable(b2):
        _, rate = _split(b2, count, dtype)
        log = jnp.maximum(jnp.log1p(-rate), NOTHING)
        return Remaining(count.astype(dtype) * log, jnp.zeros([], dtype))

    def take_step(i: jax.Array, remaining: Remaining) -> Remaining:
        return multiply(remaining, _split(b2, i, dtype)[1])

    return jax.lax.fori_loop(0, count, take_step, init(dtype))


def correction(remaining: Remaining) -> jax.Array:
    """Returns what a statistic is too small by, as it began at zero."""
    return -jnp.expm1(remaining.log)


def ratio(new: Remaining, old: Remaining, count: jax.Array) -> jax.Array:
    """Returns what keeps a corrected moment under another product of decays."""
    # Before the first step there is none.
    return jnp.where(count > 0, correction(new) / correction(old), 0)


def multiply(remaining: Remaining, rate: jax.Array) -> Remaining:
    """Returns the product with one more decay, 1 - rate."""
    term = jnp.maximum(jnp.log1p(-rate), NOTHING)
    return Remaining(*add(remaining.log, remaining.error, term))


def add(total: jax.Array, error: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
    """Adds to a sum as Kahan does; returns the sum and what rounding added to it."""
    term = x - error
    new = total + term
    return new, (new - total) - term


def _split(
    b2: ScalarOrSchedule, count: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """Returns b2 and 1 - b2, each with all its digits.

    In float32, 1 - 0.999 is off by 1.3e-5 of itself, and so is 1 - 0.998 of a small b2.
    """
    if isinstance(b2, AdafactorDecay):
        rate = b2.rate(count).astype(dtype)
        return 1 - rate, rate
    now = _once(b2(count) if callable(b2) else b2)
    return jnp.asarray(now, dtype), jnp.asarray(1 - now, dtype)


def _once(b2: ArrayLike) -> ArrayLike:
    """Returns b2, the same number wherever it is used.

    XLA:CPU computes a schedule again for each use, and its cosine of a vector is not
    that of a scalar. A last digit of 0.999 is 6e-5 of 1 - 0.999. What comes out of a
    branch is computed once; this one, for a negative b2, is never taken.
    """
    if not isinstance(b2, Tracer) or not jnp.issubdtype(b2.dtype, jnp.floating):
        return b2
    return jax.lax.platform_dependent(
        b2,
        cpu=lambda b2: jax.lax.cond(b2 < 0, jnp.exp, lambda b2: b2, b2),
        default=lambda b2: b2,
    )
