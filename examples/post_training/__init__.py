"""Parts of finetune.py and grpo.py."""

from typing import Any, TypeAlias

# An `ml_collections.ConfigDict`, whose fields type checkers do not know.
Config: TypeAlias = Any
