"""The optimizers of token tables that the study compares."""

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


class Arm(NamedTuple):
    """An optimizer of the tables, without a learning rate."""

    title: str
    scale_by: Callable[[], optax.GradientTransformation]
    start: Pair  # rates of embedding and head where the search begins


def adafactor() -> optax.GradientTransformation:
    """`optax.adafactor` with its defaults, but factored at every width.

    Its learning rate is relative to the size of the parameters.
    """
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=1),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )


def muon() -> optax.GradientTransformation:
    """Muon with its defaults; an update has singular values of about 1."""
    matrix = optax.contrib.MuonDimensionNumbers()
    return optax.contrib.scale_by_muon(
        weight_dimension_numbers=lambda tables: jax.tree.map(lambda _: matrix, tables)
    )


def adam(b1: float, b2: float, eps: float = 1e-8) -> Callable[[], Any]:
    return lambda: optax.scale_by_adam(b1, b2, eps)


def ember(b2: Any) -> Callable[[], Any]:
    return lambda: ember_optax.scale_by_ember(b2)


ember_adafactor = ember(ember_optax.adafactor_decay())


DEFAULT_PAIR = (0.56, 0.032)

ARMS = {
    "ember": Arm("Ember, b2 0.999", ember_optax.scale_by_ember, DEFAULT_PAIR),
    "ember_adafactor": Arm("Ember, Adafactor decay", ember_adafactor, DEFAULT_PAIR),
    "ember_uncapped": Arm(
        "Ember, Adafactor decay without cap",
        ember(ember_optax.adafactor_decay(max_decay=None)),
        DEFAULT_PAIR,
    ),
    "ember_cap99": Arm(
        "Ember, Adafactor decay up to 0.99",
        ember(ember_optax.adafactor_decay(max_decay=0.99)),
        DEFAULT_PAIR,
    ),
    "ember_9999": Arm("Ember, b2 0.9999", ember(0.9999), DEFAULT_PAIR),
    "ember_centered": Arm(
        "Ember, Adafactor decay, centered",
        lambda: optax.chain(ember_adafactor(), centered()),
        DEFAULT_PAIR,
    ),
    "row_only": Arm("row moment only", row_only, (0.32, 0.018)),
    "adam": Arm("Adam (0.9, 0.999)", adam(0.9, 0.999), DEFAULT_PAIR),
    "adam95": Arm("Adam (0.9, 0.95)", adam(0.9, 0.95), DEFAULT_PAIR),
    "adam80": Arm("Adam (0.8, 0.95)", adam(0.8, 0.95), (1.0, 0.032)),
    # nanochat's betas for the embedding and for the head.
    "adam80_995": Arm("Adam (0.8, 0.995)", adam(0.8, 0.995, 1e-10), (1.0, 0.032)),
    "adam80_96": Arm("Adam (0.8, 0.96)", adam(0.8, 0.96, 1e-10), (1.0, 0.032)),
    "adam_adafactor": Arm(
        "Adam (0.8, Adafactor decay)",
        lambda: adam_with_schedule(0.8, ember_optax.adafactor_decay()),
        (1.0, 0.032),
    ),
    "amsgrad": Arm("AMSGrad (0.9, 0.999)", optax.scale_by_amsgrad, DEFAULT_PAIR),
    "factored_rms": Arm(
        "factored RMS",
        lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=1),
        DEFAULT_PAIR,
    ),
    "adafactor": Arm("Adafactor", adafactor, (1.0, 0.32)),
    "sm3": Arm("SM3", optax.scale_by_sm3, (1.0, 0.1)),
    "muon": Arm("Muon", muon, (1.0, 0.1)),
    **{
        f"balanced{momentum * 100:.0f}": Arm(
            f"balanced momentum {momentum}",
            lambda momentum=momentum: balanced_momentum(momentum),
            (0.032, 0.0056),
        )
        for momentum in (0.0, 0.5, 0.9, 0.95)
    },
}
