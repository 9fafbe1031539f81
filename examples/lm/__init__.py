"""What the training programs share: model, data, optimizer, loop, checkpoints."""

from typing import Any

Config = Any
"""An `ml_collections.ConfigDict`, whose fields no type checker can know."""
