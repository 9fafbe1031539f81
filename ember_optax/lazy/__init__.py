"""Ember for tables so large that a step must touch only the rows of its batch."""

from ember_optax.lazy._lazy import init as init
from ember_optax.lazy._lazy import lookup as lookup
from ember_optax.lazy._lazy import update as update
from ember_optax.lazy._step import LazyState as LazyState
from ember_optax.lazy._step import RowDecay as RowDecay

__all__ = ["LazyState", "RowDecay", "init", "lookup", "update"]


def __dir__() -> list[str]:
    return __all__
