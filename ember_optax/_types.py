"""What type checkers know of results whose types come from optax, which has none."""

from typing import Any

import optax

from ember_optax._ember import EmberState


class ScaleByEmber(optax.GradientTransformationExtraArgs):
    """What `scale_by_ember` returns; only type checkers see this class."""

    def init(self, params: Any) -> EmberState: ...  # pyright: ignore

    def update(  # pyright: ignore
        self,
        updates: Any,
        state: EmberState,
        params: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, EmberState]: ...
