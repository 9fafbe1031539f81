"""A small model, trained for some steps on one device or on a mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax

MODES = [AxisType.Auto, AxisType.Explicit]


def make_mesh(mode: AxisType, shape: tuple[int, ...] = (4, 2)) -> jax.sharding.Mesh:
    names = ("x", "y", "z")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(mode,) * len(shape))


def make_tables() -> dict[str, jax.Array]:
    return {
        "embed": jax.random.normal(jax.random.key(0), (64, 16)),
        "lm_head": jax.random.normal(jax.random.key(1), (16, 64)),
    }


def train(tx: Any, params: Any, steps: int = 100) -> Any:
    """Trains on gradients in which every third row is absent from every batch."""

    def step(carry: Any, seed: jax.Array) -> Any:
        params, state = carry
        grads = jax.tree.map(lambda x: jnp.sin(9 * x + seed) * present(x), params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    init = params, tx.init(params)
    return jax.lax.scan(step, init, jnp.arange(steps, dtype=jnp.float32))[0]


def present(table: jax.Array) -> jax.Array:
    axis = max(range(table.ndim), key=table.shape.__getitem__)
    rows = jax.lax.broadcasted_iota(jnp.int32, table.shape, axis)
    return (rows % 3 > 0).astype(table.dtype)


@functools.cache
def one_device() -> Any:
    tables, _ = jax.jit(train, static_argnums=0)(ember_optax.ember(1e-2), make_tables())
    return jax.device_get(tables)


def table_moments(tree: Any) -> list[jax.Array]:
    """Finds every row and col in a state."""
    return [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if "tables" in jax.tree_util.keystr(path)
    ]


def assert_replicated(moments: list[jax.Array], mesh: jax.sharding.Mesh) -> None:
    assert moments
    for x in moments:
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, P()), x.ndim)
