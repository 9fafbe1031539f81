"""A variant of Ember whose step reads gradient and table once, as SGD does."""

from ember_optax.experimental.fused._fused import FusedState as FusedState
from ember_optax.experimental.fused._fused import apply as apply
from ember_optax.experimental.fused._fused import init as init

__all__ = ["FusedState", "apply", "init"]


def __dir__() -> list[str]:
    return __all__
