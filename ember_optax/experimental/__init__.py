"""Variants that are not the exact rule: they may change or go without notice."""

from ember_optax.experimental import fused as fused

__all__ = ["fused"]


def __dir__() -> list[str]:
    return __all__
