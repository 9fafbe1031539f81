"""Optimizer states that change their optimizer or their vocabulary."""

from ember_optax._convert._adam import from_adam as from_adam
from ember_optax._convert._adam import to_adam as to_adam
from ember_optax._convert._resize import resize_vocab as resize_vocab
