"""States survive checkpoints, onto another mesh too, and those of earlier releases.

`data/state.msgpack` is a checkpoint of version 0.1.0: the states of both optimizers
after two steps, and their third update. The structure of a state is public API, so a
test restores this file. `python -m tests.unit.test_checkpoint` wrote it.
"""

from pathlib import Path
from typing import Any

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax

pytestmark = pytest.mark.usefixtures("standard_promotion")

GOLDEN = Path(__file__).parent / "data" / "state.msgpack"
PARAMS = {
    "decoder": {"embed": {"embedding": jnp.linspace(-1, 1, 64).reshape(16, 4)}},
    "mlp": {"kernel": jnp.linspace(-1, 1, 32).reshape(4, 8)},
}
OPTIMIZERS = {
    "multi_transform": optax.multi_transform(
        {"table": ember_optax.ember(1e-2), "body": optax.adamw(1e-3)},
        ember_optax.label_token_tables,
    ),
    "with_ember": ember_optax.with_ember(
        optax.adamw(1e-3), head_learning_rate=1e-2, max_norm=1.0
    ),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def step(name: str, state: Any, scale: float) -> tuple[Any, Any]:
    grads = jax.tree.map(lambda x: jnp.sin(scale * x), PARAMS)
    return jax.jit(OPTIMIZERS[name].update)(grads, state, PARAMS)


def make_state(name: str) -> Any:
    state = OPTIMIZERS[name].init(PARAMS)
    for scale in (1.0, 3.0):
        _, state = step(name, state, scale)
    return state


@every_optimizer
def test_golden_checkpoint(name: str) -> None:
    target = {
        name: {"state": OPTIMIZERS[name].init(PARAMS), "update": PARAMS}
        for name in OPTIMIZERS
    }
    golden = flax.serialization.from_bytes(target, GOLDEN.read_bytes())[name]
    chex.assert_trees_all_equal_shapes_and_dtypes(golden["state"], make_state(name))
    update, _ = step(name, golden["state"], 5.0)
    chex.assert_trees_all_close(update, golden["update"], rtol=1e-5, atol=1e-9)


def save(directory: Path, state: Any) -> None:
    with ocp.CheckpointManager(directory) as manager:
        manager.save(1, args=ocp.args.StandardSave(state))


def restore(directory: Path, target: Any = None) -> Any:
    with ocp.CheckpointManager(directory) as manager:
        return manager.restore(1, args=ocp.args.StandardRestore(target))


@every_optimizer
def test_orbax(tmp_path: Path, name: str) -> None:
    state = make_state(name)
    save(tmp_path, state)
    restored = restore(tmp_path, jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_structs(restored, state)
    # Onto another mesh, replicated.
    sharding = NamedSharding(jax.make_mesh((8,), ("x",)), P())
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )
    restored = restore(tmp_path, target)
    chex.assert_trees_all_equal(restored, state)
    assert {x.sharding for x in jax.tree.leaves(restored)} == {sharding}
    # Without a target, the tables can be found by the paths of the parameters.
    (tables,) = optax.tree.get_all_with_path(restore(tmp_path), "tables")
    assert list(tables[1]) == ["decoder:embed:embedding"]
    chex.assert_shape(tables[1]["decoder:embed:embedding"]["row"], (16,))


def write_golden() -> None:
    with jax.numpy_dtype_promotion("standard"):
        golden = {}
        for name in OPTIMIZERS:
            state = make_state(name)
            golden[name] = {"state": state, "update": step(name, state, 5.0)[0]}
    GOLDEN.write_bytes(flax.serialization.to_bytes(golden))


if __name__ == "__main__":
    write_golden()
