"""The optimizers of token tables that the study compares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import ember_optax

ScaleBy = Callable[[Any], optax.GradientTransformation]


class Arm(NamedTuple):
    """One optimizer of the tables, still without a learning rate."""

    title: str
    scale_by: ScaleBy  # from b2
    b2: float | None  # the one to begin with; None where there is none
    center: float  # learning rate in the middle of the first sweep


def factored_rms(b2: float) -> optax.GradientTransformation:
    """Optax's factored second moment with Adam's debiased constant decay: Ember."""
    return optax.scale_by_factored_rms(
        min_dim_size_to_factor=1,
        decay_rate=b2,
        decay_rate_fn=lambda i, b: b * (1 - b**i) / (1 - b ** (i + 1)),
    )


def adafactor() -> optax.GradientTransformation:
    """`optax.adafactor` with its defaults, but factored whatever the width.

    Its learning rate is relative to the size of the parameters.
    """
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=1),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )


def muon() -> optax.GradientTransformation:
    """Muon as it is by default; an update has singular values of about 1."""
    matrix = optax.contrib.MuonDimensionNumbers()
    return optax.contrib.scale_by_muon(
        weight_dimension_numbers=lambda tables: jax.tree.map(lambda _: matrix, tables)
    )


class RowState(NamedTuple):
    count: Any  # int32[], steps taken
    row: optax.Params  # one second moment for each token, in [V, 1] or [1, V]


def row_only(b2: float, eps: float = 1e-8) -> optax.GradientTransformation:
    """Ember without its columns: a gradient over the root of its row's moment."""

    def row_means(tables: optax.Params) -> optax.Params:
        def row_mean(x: jax.Array) -> jax.Array:
            axis = x.shape.index(min(x.shape))
            return jnp.mean(jnp.square(x), axis=axis, keepdims=True)

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


ARMS = {
    "ember": Arm("Ember", ember_optax.scale_by_ember, 0.999, 1e-2),
    "ember_active": Arm(
        "Ember, columns over active rows",
        lambda b2: ember_optax.scale_by_ember(b2, column_mean="active"),
        0.999,
        1e-2,
    ),
    # Decay 1 - t^-0.8: step t averages over about the last t^0.8 steps. The key is that
    # of the runs on file; the title says what runs.
    "ember_growing": Arm(
        "factored RMS, Adafactor decay",
        lambda _: optax.scale_by_factored_rms(min_dim_size_to_factor=1),
        None,
        1e-2,
    ),
    "factored_rms": Arm("factored RMS, debiased", factored_rms, 0.999, 1e-2),
    "row_only": Arm("row moment only", row_only, 0.999, 1e-2),
    "adam": Arm("Adam", lambda b2: optax.scale_by_adam(b2=b2), 0.999, 3e-2),
    "adam95": Arm("Adam", lambda b2: optax.scale_by_adam(b2=b2), 0.95, 3e-2),
    # scale_by_adam(b1=0) would keep a first moment that it does not need.
    "adam_no_momentum": Arm(
        "Adam, b1 = 0",
        lambda b2: optax.scale_by_rms(b2, eps_in_sqrt=False, bias_correction=True),
        0.999,
        1e-2,
    ),
    "adafactor": Arm("Adafactor", lambda _: adafactor(), None, 0.3),
    "sm3": Arm("SM3", lambda _: optax.scale_by_sm3(), None, 0.1),
    "muon": Arm("Muon", lambda _: muon(), None, 1.0),
    "sign": Arm("sign", lambda _: optax.scale_by_sign(), None, 3e-3),
    "sgd": Arm("SGD", lambda _: optax.identity(), None, 10.0),
}
