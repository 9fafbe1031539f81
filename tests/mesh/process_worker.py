"""One of several processes that train sharded tables; see test_processes.py."""

import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from tests.mesh.training import (
    assert_replicated,
    make_mesh,
    make_tables,
    table_moments,
    train,
)

CASES = {
    "both": (AxisType.Explicit, P("x", "y")),
    "rows": (AxisType.Auto, P(("x", "y"), None)),
}


def train_on(mesh: jax.sharding.Mesh, spec: P) -> Any:
    """Returns the tables after a hundred steps, whole in every process."""
    sharding = NamedSharding(mesh, spec)
    tables = jax.device_put(jax.device_get(make_tables()), sharding)
    is_auto = AxisType.Auto in mesh.axis_types
    given = dict.fromkeys(tables, sharding) if is_auto else None
    tx = ember_optax.ember(1e-2, param_shardings=given)
    jitted = jax.jit(train, static_argnums=0)
    with jax.set_mesh(mesh):
        result, state = jitted(tx, tables)
        again, _ = jitted(tx, tables)
    assert_replicated(table_moments(state), mesh)
    result, again = multihost_utils.process_allgather((result, again), tiled=True)
    jax.tree.map(np.testing.assert_array_equal, result, again)
    return result


def main(address: str, processes: str, index: str, path: str) -> None:
    """Writes the tables of each case."""
    jax.distributed.initialize(address, int(processes), int(index))
    results = {
        f"{case}/{name}": table
        for case, (axis_type, spec) in CASES.items()
        for name, table in train_on(make_mesh(axis_type), spec).items()
    }
    first = {f"first/{name}": table for name, table in make_tables().items()}
    if jax.process_index() == 0:
        np.savez(path, **results, **first)


if __name__ == "__main__":
    main(*sys.argv[1:])
