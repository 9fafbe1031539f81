"""The state survives a checkpoint, also onto another mesh."""

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax

pytestmark = pytest.mark.usefixtures("standard_promotion")


def make_state(b2: Any = 0.999) -> Any:
    params = {
        "decoder": {"embed": {"embedding": jnp.ones((16, 4))}},
        "mlp": {"kernel": jnp.ones((4, 8))},
    }
    tx = optax.multi_transform(
        {"table": ember_optax.ember(1e-2, b2), "body": optax.adamw(1e-3)},
        ember_optax.label_token_tables,
    )
    _, state = tx.update(jax.tree.map(jnp.sin, params), tx.init(params), params)
    return state


def save(directory: Path, state: Any) -> None:
    with ocp.CheckpointManager(directory) as manager:
        manager.save(1, args=ocp.args.StandardSave(state))


@pytest.mark.parametrize("b2", [0.999, ember_optax.adafactor_decay()])
def test_round_trip(tmp_path: Path, b2: Any) -> None:
    state = make_state(b2)
    save(tmp_path, state)
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    with ocp.CheckpointManager(tmp_path) as manager:
        restored = manager.restore(1, args=ocp.args.StandardRestore(target))
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_structs(restored, state)


def test_restored_replicated_on_another_mesh(tmp_path: Path) -> None:
    state = make_state()
    save(tmp_path, state)
    sharding = NamedSharding(jax.make_mesh((8,), ("x",)), P())
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )
    with ocp.CheckpointManager(tmp_path) as manager:
        restored = manager.restore(1, args=ocp.args.StandardRestore(target))
    chex.assert_trees_all_equal(restored, state)
    assert {x.sharding for x in jax.tree.leaves(restored)} == {sharding}


def test_tables_are_named_by_their_path(tmp_path: Path) -> None:
    save(tmp_path, make_state())
    with ocp.CheckpointManager(tmp_path) as manager:
        restored = manager.restore(1, args=ocp.args.StandardRestore())
    tables = restored["inner_states"]["table"]["inner_state"][0]["tables"]
    assert list(tables) == ["decoder:embed:embedding"]
    chex.assert_shape(tables["decoder:embed:embedding"]["row"], (16,))
