"""Whether two states are of one model, and of the optimizers that they should be of."""

from typing import Any

import jax

from ember_optax._convert._parts import ByPath, Dense, Factored
from ember_optax._paths import quoted


def check_kind(where: str, moments: ByPath, kind: type) -> None:
    if not any(isinstance(found, kind) for found in moments.values()):
        owners = {Dense: "Adam", Factored: "Ember"}
        other = next(iter({Dense, Factored} - {kind}))
        raise ValueError(
            f"The {where} has the moments of {_some(moments)}, all of them of"
            f" {owners[other]}, but some of {owners[kind]} are needed: from_adam goes"
            " from Adam to Ember, to_adam from Ember to Adam."
        )


def check_same_parameters(old: ByPath, new: ByPath) -> None:
    if missing := new.keys() - old.keys():
        raise ValueError(
            f"tx trains {_some(missing)} with Adam or Ember, but the given state has"
            f" the moments of {_some(old)} only. Give the state, the optimizer and the"
            " parameters of one model."
        )
    if unused := old.keys() - new.keys():
        raise ValueError(
            f"The given state has moments of {_some(unused)}, but tx trains only"
            f" {_some(new)} with Adam or Ember. Train all that Adam or Ember have"
            " trained with one of them, or start anew with tx.init."
        )


def check_shape(path: str, found: jax.Array, expected: jax.Array) -> None:
    if found.shape != expected.shape:
        raise ValueError(
            f"The given state has moments of {quoted(path)} with the shape"
            f" {found.shape}, but the parameter has {expected.shape}. Give the state"
            " and the parameters of one model."
        )


def _some(paths: Any) -> str:
    """Lists the first few."""
    listed = sorted(map(quoted, paths))
    more = [f"{len(listed) - 5} more"] if len(listed) > 5 else []
    return ", ".join(listed[:5] + more)
