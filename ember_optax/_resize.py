"""Optimizer states that follow a vocabulary as it grows, shrinks or is reordered."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from ember_optax._checks import axis_of_tokens
from ember_optax._ember import EmberState
from ember_optax._moments import TableMoments
from ember_optax._parts import map_parts, moments_by_path
from ember_optax._paths import named_leaves, quoted
from ember_optax._sharding import pin


def resize_vocab(
    opt_state: Any,
    old_params: Any,
    new_params: Any,
    *,
    tokens: ArrayLike | Mapping[str, ArrayLike] | None = None,
) -> Any:
    r"""Returns the optimizer state for tables with another vocabulary.

    A token that stays keeps its `row`, and takes the steps that it would have taken. A
    row of zero would give a new token a first step of up to :math:`1 / \sqrt{1 - b_2}`
    times the learning rate, 32 at `b2 = 0.999`. It gets the mean of all rows that have
    had a gradient, with which its first step is as large as those of other tokens.

    Args:
      opt_state: state of any optimizer with Ember in it. Every
        :class:`ember_optax.EmberState` is resized, and nothing else: moments that Adam
        has of other parameters stay as they are.
      old_params: the parameters that it belongs to; their shapes are enough.
      new_params: the parameters after the change; likewise. Their values are yours to
        choose.
      tokens: integers [new V], for each row the old one that it was, or -1 for a new
        token. An old row that is named twice is copied. Where tables have different
        vocabularies, a mapping from the path of a table to its integers. By default
        tokens were appended or dropped at the end.

    Returns:
      The state, with `row` of the new length.

    Raises:
      ValueError: there is no Ember in the state, a table is missing or has changed in
        more than its number of tokens, `tokens` do not fit, or Adam has moments of a
        parameter whose shape changes. Messages name the path of the parameter.

    Examples:
      >>> import jax.numpy as jnp, ember_optax
      >>> old = {"embed": jnp.array([[2., 0.], [0., 4.], [0., 0.]])}
      >>> tx = ember_optax.ember(1e-2, b2=0.5)
      >>> _, state = tx.update(old, tx.init(old))
      >>> new = {"embed": jnp.zeros((4, 2))}
      >>> resized = ember_optax.resize_vocab(state, old, new)
      >>> print(resized[0].tables["embed"].row)
      [1.  4.  0.  2.5]
    """
    old_tables, new_tables = dict(named_leaves(old_params)), dict(named_leaves(new_params))

    def resize(part: Any) -> Any:
        if not isinstance(part, EmberState):
            return part
        return part._replace(tables={
            path: _resize(moments, sources(path, moments)) for path, moments in part.tables.items()
        })

    return map_parts(resize, opt_state)
