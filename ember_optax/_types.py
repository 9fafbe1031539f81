"""What type checkers know of results whose types come from optax, which has none."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar, Union

import optax

Leaf = TypeVar("Leaf")
State = TypeVar("State")
StateCo = TypeVar("StateCo", covariant=True)
Updates = TypeVar("Updates")

# A nest with leaves of one type, in the containers of `optax.Params`.
Tree = Union[Leaf, Iterable["Tree[Leaf]"], Mapping[Any, "Tree[Leaf]"]]  # noqa: UP007


class Optimizer(Protocol[StateCo]):
    """Any Optax transformation, by the type of its state."""

    @property
    def init(self) -> Callable[[Any], StateCo]: ...

    @property
    def update(self) -> Callable[..., tuple[Any, Any]]: ...


class Transformation(optax.GradientTransformationExtraArgs, Generic[State]):
    """A transformation of this library; only type checkers see this class."""

    def init(self, params: Any) -> State: ...  # pyright: ignore

    def update(  # pyright: ignore
        self,
        updates: Updates,
        state: State,
        params: Any = None,
        **extra_args: Any,
    ) -> tuple[Updates, State]: ...
