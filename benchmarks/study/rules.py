"""Optimizers of tables that exist neither in Optax nor in Ember."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class RowState(NamedTuple):
    count: Any  # int32[], steps taken
    row: optax.Params  # one second moment for each token, in [V, 1] or [1, V]


def row_only(b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Ember without its column moment: divides by the root of the row moment."""

    def row_means(tables: optax.Params) -> optax.Params:
        def row_mean(x: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(x), axis=1 - vocab_axis(x), keepdims=True)

        return jax.tree.map(row_mean, tables)

    def init(params: optax.Params) -> RowState:
        return RowState(
            jnp.zeros([], jnp.int32), optax.tree.zeros_like(row_means(params))
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, RowState]:
        del params
        count = optax.safe_increment(state.count)
        row = optax.tree.update_moment(row_means(updates), state.row, b2, 1)
        debiased = optax.tree.bias_correction(row, b2, count)
        updates = jax.tree.map(lambda g, r: g / (jnp.sqrt(r) + eps), updates, debiased)
        return updates, RowState(count, row)

    return optax.GradientTransformation(init, update)


def adam_with_schedule(
    b1: float, b2: Callable[[Any], Any], eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam with a schedule for b2 that starts at 0: nu needs no bias correction."""

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(
            updates, state.nu, b2(state.count), 2
        )
        count = optax.safe_increment(state.count)
        debiased = optax.tree.bias_correction(mu, b1, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), debiased, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


MASKED_BELOW = 1e-3  # of the table's root mean square


def balanced_momentum(decay: float, rounds: int = 11) -> optax.GradientTransformation:
    """Nesterov momentum whose rows and columns are scaled to unit root mean square.

    DeepSeek-V4.1-Flash describes it for its token tables: rows with very small momentum
    are left out, then rows and columns are scaled in turn, as in Sinkhorn's algorithm.
    A decay of 0 keeps no state. docs/notebooks/zipf.ipynb has three rounds.
    """

    def balance(x: jax.Array) -> jax.Array:
        tokens = vocab_axis(x)
        size = rms(x, 1 - tokens)
        live = size > MASKED_BELOW * rms(x, (0, 1))
        x = jnp.where(live, x, 0)
        share_of_live = jnp.sqrt(jnp.mean(live))
        for _ in range(rounds):
            x = x / jnp.where(live, rms(x, 1 - tokens), 1)
            column = rms(x, tokens) / share_of_live
            x = x / jnp.where(column > 0, column, 1)
        return x

    def rms(x: jax.Array, axis: int | tuple[int, int]) -> jax.Array:
        return jnp.sqrt(jnp.mean(jnp.square(x), axis=axis, keepdims=True))

    # Optax's trace is Nesterov's: gradient + decay * (decay * trace + gradient).
    momentum = optax.trace(decay, nesterov=True) if decay else optax.identity()
    return optax.chain(momentum, optax.stateless(lambda x, _: jax.tree.map(balance, x)))


def centered() -> optax.GradientTransformation:
    """Subtracts the mean over the vocabulary from the update of a head.

    Moving all logits by the same amount changes no probability.
    """

    def center(x: jax.Array) -> jax.Array:
        return x - jnp.mean(x, axis=vocab_axis(x), keepdims=True)

    return optax.stateless(lambda updates, _: jax.tree.map(center, updates))


def add_cautious_decay(rate: float) -> optax.GradientTransformation:
    """Adds decayed weights only where weight and update have the same sign.

    modded-nanogpt and Marin decay in this way: never against the gradient.
    """

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree.map(lambda u, p: u + rate * p * (u * p > 0), updates, params)

    return optax.stateless(update)


def vocab_axis(x: jax.Array) -> int:
    """Returns the longer axis of a table."""
    return x.shape.index(max(x.shape))
