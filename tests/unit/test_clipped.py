"""Clipping by the global norm against Optax's own, in front of the same optimizer."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import ember_optax
from ember_optax import _clipping

# Optax's Adam and MultiSteps mix integers and floats.
pytestmark = pytest.mark.usefixtures("standard_promotion")

SHAPES = {"embed": (40, 8), "mlp": (8, 8), "lm_head": (8, 40)}
MAX_NORM = 1.0


def make_tree(seed: int, scale: float = 1.0, dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape), dtype)
        for name, shape in SHAPES.items()
    }


def routed(learning_rate: Any = 1e-2, **options: Any) -> Any:
    tables = ember_optax.ember(learning_rate, weight_decay=0.1, **options)
    return optax.multi_transform(
        {"table": tables, "body": optax.adamw(1e-3)}, ember_optax.label_token_tables
    )


def by_role() -> Any:
    decay = ember_optax.adafactor_decay()
    return optax.multi_transform(
        {
            "embed": ember_optax.ember(1e-2, decay),
            "head": ember_optax.ember(1e-3),
            "body": optax.sgd(0.1, momentum=0.9),
        },
        partial(ember_optax.label_token_tables, embed="embed", head="head"),
    )


# What reaches Ember as it is, and what something else looks at first.
FOLDED = {
    "routed": routed,
    "active": lambda: routed(column_mean="active"),
    "by_role": by_role,
    "chained": lambda: optax.chain(routed(), optax.scale(0.5)),
    "injected": lambda: optax.inject_hyperparams(lambda rate: routed(rate))(rate=1e-2),
    "clipped_twice": lambda: ember_optax.clipped(routed(), 0.5),
}
SCALED = {
    "scaled_before": lambda: optax.chain(optax.scale(0.5), routed()),
    "accumulated": lambda: optax.MultiSteps(routed(), 2),
    "if_finite": lambda: optax.apply_if_finite(routed(), 3),
    "without_ember": lambda: optax.adamw(1e-3),
}


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Collects the tables that were not scaled, of each update."""
    found, groups_of = [], _clipping._groups

    def spy(*arguments: Any) -> Any:
        groups = groups_of(*arguments)
        found.append({path for group in groups for path in group.places})
        return groups

    monkeypatch.setattr(_clipping, "_groups", spy)
    return found


@pytest.mark.parametrize("name", FOLDED | SCALED)
@pytest.mark.parametrize("jit", [False, True])
def test_updates_and_states_are_those_of_the_chain(
    name: str, jit: bool, folded: list[set[str]]
) -> None:
    make, params = (FOLDED | SCALED)[name], make_tree(0)
    tx = ember_optax.clipped(make(), MAX_NORM)
    chain = optax.chain(optax.clip_by_global_norm(MAX_NORM), make())
    state, (_, expected_state) = tx.init(params), chain.init(params)
    updates_of = jax.jit(tx.update) if jit else tx.update
    for seed, scale in enumerate((1e-2, 1.0, 1e-3, 30.0)):
        grads = make_tree(seed + 1, scale)
        updates, state = updates_of(grads, state, params)
        expected, (_, expected_state) = jax.jit(chain.update)(
            grads, (optax.EmptyState(), expected_state), params
        )
        chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-9)
        chex.assert_trees_all_close(state, expected_state, rtol=1e-5, atol=1e-9)
    tables = {"embed", "lm_head"} if name in FOLDED else set()
    assert folded[0] == tables


def test_a_group_that_something_else_looks_at_is_scaled(
    folded: list[set[str]],
) -> None:
    """A monitor beside Ember must see what it would see behind Optax's clipping."""
    seen = []

    def monitored() -> Any:
        inner = ember_optax.ember(1e-2)

        def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            updates, state = inner.update(grads, state, params, **extra)
            seen.append(optax.tree.norm(grads))
            return updates, state

        return optax.GradientTransformationExtraArgs(inner.init, update)

    params = {"embed": jnp.ones((6, 2))}
    tx = ember_optax.clipped(monitored(), MAX_NORM)
    tx.update({"embed": jnp.full((6, 2), 10.0)}, tx.init(params), params)
    assert folded == [set()]
    np.testing.assert_allclose(seen[-1], MAX_NORM, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype: Any) -> None:
    params = make_tree(0, dtype=dtype)
    tx = ember_optax.clipped(routed(), MAX_NORM)
    chain = optax.chain(optax.clip_by_global_norm(MAX_NORM), routed())
    grads = make_tree(1, 3.0, dtype)
    updates, _ = tx.update(grads, tx.init(params), params)
    expected, _ = chain.update(grads, chain.init(params), params)
    widen = partial(jax.tree.map, lambda x: np.asarray(x, np.float32))
    chex.assert_trees_all_equal_dtypes(updates, params)
    # The chain rounds the clipped gradient, and its norm.
    chex.assert_trees_all_close(widen(updates), widen(expected), rtol=0.03, atol=1e-4)


def test_in_float64() -> None:
    with jax.enable_x64(True):
        params = make_tree(0, dtype=jnp.float64)
        tx = ember_optax.clipped(routed(), MAX_NORM)
        chain = optax.chain(optax.clip_by_global_norm(MAX_NORM), routed())
        state, expected_state = tx.init(params), chain.init(params)
        for scale in (0.01, 3.0):  # the first step does not depend on the scale
            grads = make_tree(1, scale, jnp.float64)
            updates, state = tx.update(grads, state, params)
            expected, expected_state = chain.update(grads, expected_state, params)
        chex.assert_trees_all_close(updates, expected, rtol=1e-12)


@pytest.mark.parametrize("value", [2e19, 1e30, 3e38])
def test_gradients_whose_norm_overflows_leave_a_finite_state(value: float) -> None:
    params = make_tree(0)
    tx = ember_optax.clipped(routed(), MAX_NORM)
    grads = make_tree(1)
    grads["embed"] = grads["embed"].at[3, 2].set(value)
    updates, state = tx.update(grads, tx.init(params), params)
    for leaf in jax.tree.leaves((updates, state)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("max_norm", [0, -1.0, np.nan, None, "1"])
def test_a_norm_that_is_none_is_refused(max_norm: Any) -> None:
    with pytest.raises(ValueError, match=f"max_norm is {max_norm!r}, but it must be"):
        ember_optax.clipped(routed(), max_norm)


def test_inside_shard_map_it_is_refused() -> None:
    tx = ember_optax.clipped(
        ember_optax.ember(1e-2, axis_names=("x", None), vocab_axis=0), MAX_NORM
    )
    update = jax.shard_map(
        lambda p: tx.update(p, tx.init(p), p)[0],
        mesh=jax.make_mesh((2,), ("x",), (AxisType.Auto,)),
        in_specs=P("x", None),
        out_specs=P("x", None),
    )
    with pytest.raises(ValueError, match=r"clipped is used inside jax\.shard_map"):
        update({"embed": jnp.ones((4, 2))})
