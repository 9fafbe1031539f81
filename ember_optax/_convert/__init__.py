"""Optimizer states that change their optimizer, vocabulary or tables."""

from ember_optax._convert._adam import from_adam as from_adam
from ember_optax._convert._adam import to_adam as to_adam
from ember_optax._convert._resize import resize_vocab as resize_vocab
from ember_optax._convert._untie import untie as untie
