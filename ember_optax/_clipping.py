"""Clipping by the global norm, without another pass over the token tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from ember_optax import _checks
from ember_optax._reduce import InShardMap, Reducer, Sums

if TYPE_CHECKING:
    from ember_optax._types import Optimizer, State, Transformation


class Group(NamedTuple):
    """What one `scale_by_ember` does with its tables before they are scaled."""

    reducer: Reducer
    axes: Mapping[str, int]
    dtype: DTypeLike
    places: dict[str, int]  # of its gradients among all leaves, by path

    def grads(self, leaves: list[jax.Array]) -> dict[str, jax.Array]:
        return {path: leaves[i] for path, i in self.places.items()}

    def sum_squares(self, leaves: list[jax.Array]) -> dict[str, Sums]:
        return self.reducer.sum_squares(self.grads(leaves), self.axes, self.dtype)


class Probe:
    """Finds the gradients that reach `scale_by_ember` as they are, while tracing."""

    def __init__(self, leaves: list[jax.Array]):
        self.groups: list[Group] = []
        self._places = {id(leaf): i for i, leaf in enumerate(leaves)}

    def add(
        self,
        grads: Mapping[str, jax.Array],
        reducer: Reducer,
        axes: Mapping[str, int],
        dtype: DTypeLike,
    ) -> None:
        """Called by `scale_by_ember` in place of an update."""
        if isinstance(reducer, InShardMap):
            raise ValueError(
                "clipped is used inside jax.shard_map (Ember has axis_names), where a"
                " device sees its own part of the norm only: clip the gradients before,"
                " with a norm that is added up over the mesh."
            )
        if all(id(grad) in self._places for grad in grads.values()):
            places = {path: self._places[id(grad)] for path, grad in grads.items()}
            self.groups.append(Group(reducer, axes, dtype, places))


class Clipping(NamedTuple):
    """What `scale_by_ember` needs of gradients that are not scaled yet."""

    scale: jax.Array  # float32[], what the gradients are multiplied with
    sums: dict[int, dict[str, Sums]]  # of the gradients of each group, by its id

    def of(
        self, grads: Mapping[str, jax.Array]
    ) -> tuple[dict[str, Sums], jax.Array] | None:
        """Returns the sums of clipped gradients and the scale that is still to come.

        None for gradients that are scaled already.
        """
        sums = self.sums.get(_key(grads))
        if sums is None:
            return None
        return {path: self._scale(s) for path, s in sums.items()}, self.scale

    def _scale(self, sums: Sums) -> Sums:
        def scale(x: jax.Array) -> jax.Array:
            factor = self.scale.astype(x.dtype)
            # A sum that overflows stays so; the norm is infinite and the factor 0.
            return jnp.where(jnp.isinf(x), x, x * factor * factor)

        return Sums(scale(sums.row), scale(sums.col))


def clipped(inner: Optimizer[State], max_norm: float) -> Transformation[State]:
    """Clips gradients by their global norm, at no cost for Ember's tables.

    The updates are those of `optax.chain(optax.clip_by_global_norm(max_norm), inner)`,
    to rounding. That chain reads a table's gradient once for the norm and once more to
    scale it, and stores the result. Here the norm of a table comes from the row sums of
    its squares, which Ember needs anyway, and the scale goes into its update.

    Wrap the whole optimizer, so that the norm is that of all gradients. Tables that
    reach Ember through something else first, such as the accumulation of
    `optax.MultiSteps`, are scaled as usual: right, but not for nothing.

    Args:
      inner: the optimizer of the whole model, such as an `optax.multi_transform` with
        Ember on the token tables.
      max_norm: largest global norm of the gradients, positive.

    Returns:
      The optimizer. Its state is that of `inner`.

    Raises:
      ValueError: when built, for a `max_norm` that is not positive. In `update`, inside
        `jax.shard_map` (Ember with `axis_names`).

    Examples:
      >>> import jax.numpy as jnp, optax, ember_optax
      >>> tx = ember_optax.clipped(
      ...     optax.multi_transform(
      ...         {"table": ember_optax.ember(1e-2), "body": optax.adamw(1e-3)},
      ...         ember_optax.label_token_tables),
      ...     max_norm=1.0)
      >>> params = {"embed": jnp.ones((4, 2)), "mlp": jnp.ones((2, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    _checks.check_max_norm(max_norm)
    optimizer = optax.with_extra_args_support(cast(optax.GradientTransformation, inner))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        leaves, structure = jax.tree.flatten(updates)
        groups = _groups(optimizer, updates, state, params, extra_args)
        sums = [group.sum_squares(leaves) for group in groups]
        folded = {i for group in groups for i in group.places.values()}
        rest = [leaf for i, leaf in enumerate(leaves) if i not in folded]
        # Or XLA would make one sum of all squares of these, and read gradients again.
        sums = jax.lax.optimization_barrier(sums)
        squares = [jnp.sum(s.row) for tables in sums for s in tables.values()]
        squares.append(optax.tree.norm(rest, squared=True))
        is_double = any(x.dtype == jnp.float64 for x in squares)
        dtype = jnp.float64 if is_double else jnp.float32
        norm = jnp.sqrt(sum(x.astype(dtype) for x in squares))
        scale = jnp.where(norm < max_norm, 1, max_norm / norm)
        scaled = [
            leaf if i in folded else leaf * scale.astype(leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        by_group = {
            _key(group.grads(leaves)): tables
            for group, tables in zip(groups, sums, strict=True)
        }
        return optimizer.update(
            structure.unflatten(scaled),
            state,
            params,
            **extra_args | {"ember_clipping": Clipping(scale, by_group)},
        )

    transformation = optax.GradientTransformationExtraArgs(optimizer.init, update_fn)
    return cast("Transformation[State]", transformation)


def _groups(
    inner: optax.GradientTransformationExtraArgs,
    updates: optax.Updates,
    state: Any,
    params: optax.Params | None,
    extra_args: Mapping[str, Any],
) -> list[Group]:
    """Returns the groups of tables whose gradients nothing but Ember looks at."""
    probes = []

    def trace(updates: optax.Updates, state: Any, params: Any) -> Any:
        probes.append(Probe(jax.tree.leaves(updates)))
        options = dict(extra_args) | {"ember_clipping": probes[0]}
        return inner.update(updates, state, params, **options)

    jaxpr = jax.make_jaxpr(trace)(updates, state, params).jaxpr
    used = {id(x) for eqn in jaxpr.eqns for x in eqn.invars}
    used |= {id(x) for x in jaxpr.outvars}
    free = [id(var) not in used for var in jaxpr.invars]
    groups = probes[0].groups
    return [g for g in groups if all(free[i] for i in g.places.values())]


def _key(grads: Mapping[str, jax.Array]) -> int:
    """Tells the gradients of a group from all others, as long as they live."""
    return hash(tuple((path, id(grad)) for path, grad in grads.items()))
