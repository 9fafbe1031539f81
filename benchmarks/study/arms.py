"""The optimizers of token tables that the study compares."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import ember_optax
from benchmarks.common.search import Pair
from benchmarks.study.rules import (
    adam_with_schedule,
    balanced_momentum,
    centered,
    row_only,
)

ScaleBy = Callable[[Any], optax.GradientTransformation]


class Arm(NamedTuple):
    """One optimizer of the tables, still without a learning rate."""

    title: str
    scale_by: ScaleBy  # from b2
    b2: float | None = None  # the one to begin with; None where there is none
    # Where searches begin: for one learning rate, for those of embedding and head.
    center: float = math.nan
    pair: Pair = (math.nan, math.nan)


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


def adam(b1: float, b2: float, eps: float = 1e-8) -> ScaleBy:
    return lambda _: optax.scale_by_adam(b1, b2, eps)


def ember_adafactor() -> optax.GradientTransformationExtraArgs:
    return ember_optax.scale_by_ember(ember_optax.adafactor_decay())


MOST = (0.56, 0.032)

ARMS = {
    "ember": Arm("Ember", ember_optax.scale_by_ember, 0.999, 1e-2, MOST),
    "ember_adafactor": Arm(
        "Ember, Adafactor decay", lambda _: ember_adafactor(), pair=MOST
    ),
    "ember_active": Arm(
        "Ember, columns over active rows",
        lambda b2: ember_optax.scale_by_ember(b2, column_mean="active"),
        0.999,
        1e-2,
    ),
    "ember_centered": Arm(
        "Ember, Adafactor decay, centered",
        lambda _: optax.chain(ember_adafactor(), centered()),
        pair=MOST,
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
    "row_only": Arm("row moment only", row_only, 0.999, 1e-2, (0.32, 0.018)),
    "adam": Arm(
        "Adam (0.9, 0.999)", lambda b2: optax.scale_by_adam(b2=b2), 0.999, 3e-2, MOST
    ),
    "adam95": Arm(
        "Adam (0.9, 0.95)", lambda b2: optax.scale_by_adam(b2=b2), 0.95, 3e-2, MOST
    ),
    "adam80": Arm("Adam (0.8, 0.95)", adam(0.8, 0.95), pair=(1.0, 0.032)),
    # The two of nanochat, for the embedding and for the head.
    "adam80_995": Arm("Adam (0.8, 0.995)", adam(0.8, 0.995, 1e-10), pair=(1.0, 0.032)),
    "adam80_96": Arm("Adam (0.8, 0.96)", adam(0.8, 0.96, 1e-10), pair=(1.0, 0.032)),
    "adam_adafactor": Arm(
        "Adam (0.8, Adafactor decay)",
        lambda _: adam_with_schedule(0.8, ember_optax.adafactor_decay()),
        pair=(1.0, 0.032),
    ),
    "amsgrad": Arm(
        "AMSGrad (0.9, 0.999)", lambda _: optax.scale_by_amsgrad(), pair=MOST
    ),
    # scale_by_adam(b1=0) would keep a first moment that it does not need.
    "adam_no_momentum": Arm(
        "Adam, b1 = 0",
        lambda b2: optax.scale_by_rms(b2, eps_in_sqrt=False, bias_correction=True),
        0.999,
        1e-2,
    ),
    "adafactor": Arm("Adafactor", lambda _: adafactor(), None, 0.3, (1.0, 0.32)),
    "sm3": Arm("SM3", lambda _: optax.scale_by_sm3(), None, 0.1, (1.0, 0.1)),
    "muon": Arm("Muon", lambda _: muon(), None, 1.0, (1.0, 0.1)),
    **{
        f"balanced{momentum * 100:.0f}": Arm(
            f"balanced momentum {momentum}",
            lambda _, momentum=momentum: balanced_momentum(momentum),
            pair=(0.032, 0.0056),
        )
        for momentum in (0.0, 0.5, 0.9, 0.95)
    },
    "sign": Arm("sign", lambda _: optax.scale_by_sign(), None, 3e-3),
    "sgd": Arm("SGD", lambda _: optax.identity(), None, 10.0),
}
