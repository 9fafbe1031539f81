"""The decay b2 of the statistics: a number, or a schedule of the step count."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

Scalar = float | jax.Array
ScalarOrSchedule = Scalar | Callable[[ArrayLike], ArrayLike]

# Smallest 1 - b2 of a schedule. A schedule that reaches 1 would freeze the statistics.
_SMALLEST = 1e-6


@dataclasses.dataclass(frozen=True)
class AdafactorDecay:
    """The schedule that :func:`adafactor_decay` builds."""

    exponent: float
    max_decay: float | None

    def __call__(self, count: ArrayLike) -> jax.Array:
        return 1 - self.one_minus_b2(count)

    def one_minus_b2(self, count: ArrayLike) -> jax.Array:
        """1 - b2 with all its digits, of which float32 keeps few in a b2 near 1."""
        gap = (jnp.asarray(count, float) + 1) ** -self.exponent
        return gap if self.max_decay is None else jnp.maximum(gap, 1 - self.max_decay)


def adafactor_decay(
    exponent: float = 0.8, max_decay: float | None = 0.999
) -> Callable[[ArrayLike], jax.Array]:
    r"""Builds the decay schedule of Adafactor, capped.

    .. math:: b_{2,t} = \min(1 - t^{-exponent}, max\_decay), \quad t = count + 1

    Step t averages over about the last :math:`t^{exponent}` steps. The first decay is
    0, so the zeros that the statistics start with are forgotten at once. Without a cap
    the decay approaches 1, which slowly freezes the statistics of a long run.

    Args:
      exponent: growth rate of the averaging window, in (0, 1].
      max_decay: upper bound on the decay, in (0, 1); None for no bound. With 0.8 and
        0.999 the bound is reached at step 5,624.

    Returns:
      A function from the number of earlier steps, int32[], to a decay, float32[].

    Raises:
      ValueError: `exponent` or `max_decay` is out of range.

    Examples:
      >>> import ember_optax
      >>> b2 = ember_optax.adafactor_decay()
      >>> [f"{b2(count):.3f}" for count in (0, 1, 9, 99, 10**6)]
      ['0.000', '0.426', '0.842', '0.975', '0.999']

    References:
      Shazeer and Stern, `Adafactor <https://arxiv.org/abs/1804.04235>`_, 2018,
      section 7.2; Zhai et al., `Scaling Vision Transformers
      <https://arxiv.org/abs/2106.04560>`_, 2021, for the cap
    """
    if not 0 < exponent <= 1:
        raise ValueError(
            f"exponent must be in (0, 1], got {exponent}. The usual value is 0.8."
        )
    if max_decay is not None and not 0 < max_decay < 1:
        raise ValueError(
            f"max_decay must be in (0, 1), or None for no cap, got {max_decay}. The"
            " usual value is 0.999."
        )
    return AdafactorDecay(exponent, max_decay)


def one_minus_b2(b2: ScalarOrSchedule, count: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Computes 1 - b2 of one step.

    It is computed before rounding to `dtype`: in float32, 1 - 0.999 is off by a factor
    of 1.3e-5.

    Args:
      b2: decay of the statistics. Arrays and the values of a schedule are clamped to
        [0, 1 - 1e-6].
      count: int32[], number of earlier steps.
      dtype: dtype of the result.
    """
    if isinstance(b2, float | int):
        return jnp.asarray(1 - b2, dtype)
    if isinstance(b2, AdafactorDecay):
        gap = b2.one_minus_b2(count)
    else:
        gap = 1 - jnp.asarray(b2(count) if callable(b2) else b2, float)
    return jnp.clip(gap, _SMALLEST, 1).astype(dtype)


def bias_correction(
    b2: ScalarOrSchedule, count: jax.Array, dtype: DTypeLike
) -> jax.Array:
    """Computes 1 - the product of the first `count` decays."""
    if not callable(b2):
        # The smallest normal number instead of 0 keeps 0 * log(0) out of a b2 of 0.
        log_b2 = jnp.log1p(-jnp.asarray(1 - b2, dtype))
        log_b2 = jnp.maximum(log_b2, jnp.log(jnp.finfo(dtype).tiny))
        return -jnp.expm1(count.astype(dtype) * log_b2)

    def advance(i: jax.Array, correction: jax.Array) -> jax.Array:
        return correction + one_minus_b2(b2, i, dtype) * (1 - correction)

    return jax.lax.fori_loop(0, count, advance, jnp.zeros([], dtype))
