"""Two tables, trained for a hundred steps wherever they lie."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax


def make_tables() -> dict[str, jax.Array]:
    return {
        "embed": jax.random.normal(jax.random.key(0), (64, 16)),
        "lm_head": jax.random.normal(jax.random.key(1), (16, 64)),
    }


def hundred_steps(tx: Any, tables: Any) -> Any:
    """Trains on gradients in which every third row is absent from every batch."""

    def step(carry: Any, seed: jax.Array) -> Any:
        tables, state = carry
        grads = jax.tree.map(lambda x: jnp.sin(9 * x + seed) * present(x), tables)
        updates, state = tx.update(grads, state, tables)
        return (optax.apply_updates(tables, updates), state), None

    (tables, state), _ = jax.lax.scan(
        step, (tables, tx.init(tables)), jnp.arange(100, dtype=jnp.float32)
    )
    return tables, state


def present(table: jax.Array) -> jax.Array:
    rows = jax.lax.broadcasted_iota(jnp.int32, table.shape, table.shape.index(64))
    return (rows % 3 > 0).astype(table.dtype)


@functools.cache
def one_device(column_mean: Any) -> Any:
    tx = ember_optax.ember(1e-2, column_mean=column_mean)
    tables, _ = jax.jit(hundred_steps, static_argnums=0)(tx, make_tables())
    return jax.device_get(tables)


def table_moments(tree: Any) -> list[jax.Array]:
    """Every row and col in a state, wherever it is."""
    return [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if "tables" in jax.tree_util.keystr(path)
    ]


def assert_replicated(moments: list[jax.Array], mesh: jax.sharding.Mesh) -> None:
    assert moments
    for x in moments:
        assert x.sharding.is_equivalent_to(NamedSharding(mesh, P()), x.ndim)
