"""How far a step moves a row, in units of the learning rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from benchmarks.geometry.instrument import _rows


class Steps(NamedTuple):
    """Sums over the steps of a table, four numbers for each row."""

    touches: jax.Array  # int32[V], steps in which the row had a gradient
    touched: jax.Array  # float32[V], sum of the sizes of these steps
    path: jax.Array  # float32[V], sum of the sizes of all steps
    largest: jax.Array  # float32[V], size of the largest step


class MeanSteps(NamedTuple):
    """Sizes of steps of each row, in units of the learning rate; NaN if untouched."""

    touched: jax.Array  # float32[V], mean size of a step with a gradient
    per_touch: jax.Array  # float32[V], length of the whole path for each touch


def steps_init(table: jax.Array) -> Steps:
    """Returns the sums before the first step.

    Args:
      table: [V, *D]; its shape is enough.

    Raises:
      ValueError: `table` has no columns.
    """
    _rows.check_table("table", table)
    n_rows = table.shape[0]
    return Steps(
        touches=jnp.zeros(n_rows, jnp.int32),
        touched=_rows.zeros(n_rows),
        path=_rows.zeros(n_rows),
        largest=_rows.zeros(n_rows),
    )


def steps_update(steps: Steps, updates: jax.Array, grads: jax.Array) -> Steps:
    """Adds a step.

    Args:
      steps: those before.
      updates: [V, *D], what `optax.scale_by_adam` or `scale_by_ember` returns, or
        updates divided by the learning rate. The size of a row's step is its root mean
        square over the columns.
      grads: [V, *D], gradient of the table. Rows where it is zero are not touched.

    Raises:
      ValueError: the shapes do not fit each other.
    """
    _rows.check_shape("updates", updates.shape, grads.shape, "these grads")
    _rows.check_shape(
        "A column of grads", grads.shape[:1], steps.path.shape, "this state"
    )
    size = jnp.sqrt(_rows.row_means(jnp.square(updates.astype(jnp.float32))))
    touched = _rows.touched(grads)
    return Steps(
        touches=steps.touches + touched.astype(jnp.int32),
        touched=steps.touched + jnp.where(touched, size, 0),
        path=steps.path + size,
        largest=jnp.maximum(steps.largest, size),
    )


def mean_steps(steps: Steps) -> MeanSteps:
    """Returns how far a row goes when it is touched, and until it is touched again.

    Without a first moment both are the same. With one a row goes on moving without
    gradients: a small step on touch may be a long path for each touch.
    """
    touches = steps.touches.astype(jnp.float32)
    return MeanSteps(
        _rows.ratio(steps.touched, touches), _rows.ratio(steps.path, touches)
    )


def expected_step(probability: jax.Array, count: jax.Array, b2: ArrayLike) -> jax.Array:
    r"""Returns the step of a row whose gradients have one size and come by chance.

    .. math::

      \sqrt{\frac{1 - b_2^t}{(1 - b_2) + b_2 (1 - b_2^{t-1}) p}}

    That is 1 / sqrt(p) for rows that are touched often and :func:`step_bound` for those
    that are touched for the first time after many steps. It is the null model of
    :func:`mean_steps` for Ember and for Adam without a first moment.

    Args:
      probability: p, share of the steps that touch the row; any shape.
      count: t, number of the step, counted from 1; broadcast against `probability`.
      b2: decay of the second moment, in [0, 1).

    Returns:
      float32, size of the step in units of the learning rate.
    """
    rate = jnp.asarray(1 - b2, jnp.float32)
    t = jnp.asarray(count, jnp.float32)
    log = jnp.log1p(-rate)
    before = jnp.asarray(probability, jnp.float32) * -jnp.expm1((t - 1) * log)
    return jnp.sqrt(-jnp.expm1(t * log) / (rate + (1 - rate) * before))


def step_bound(b2: ArrayLike, b1: ArrayLike = 0.0) -> jax.Array:
    r"""Returns the longest step of Adam, or of Ember, in units of the learning rate.

    .. math::

      |m_t| / \sqrt{v_t} \le (1 - b_1) \Big/ \sqrt{(1 - b_2)(1 - b_1^2 / b_2)}

    by Cauchy and Schwarz, once the bias corrections are over; 1 / sqrt(1 - b2) for
    b1 = 0. A row that is touched for the first time reaches the latter. With b1 > 0 its
    first step is 1 - b1 of that, and those after it add up to about the rest.

    For Adam it holds in each cell. For Ember it holds for the root mean square of a row
    with the weights col / mean(col).

    Args:
      b2: decay of the second moment, in [0, 1).
      b1: decay of the first moment, with b1^2 < b2, or 0.
    """
    rate = jnp.asarray(1 - b2, jnp.float32)
    b1 = jnp.asarray(b1, jnp.float32)
    repeated = jnp.where(b1 == 0, 0, jnp.square(b1) / (1 - rate))
    return (1 - b1) / jnp.sqrt(rate * (1 - repeated))
