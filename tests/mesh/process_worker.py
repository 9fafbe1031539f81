"""One of several processes that train sharded tables; see test_processes.py."""

import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from examples.lm import distributed
from tests.hundred_steps import (
    assert_replicated,
    hundred_steps,
    make_tables,
    table_moments,
)

LAYOUTS = {
    "rows": P(("x", "y"), None),
    "columns": P(None, ("x", "y")),
    "both": P("x", "y"),
}
MODES = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}


def train(mode: AxisType, spec: P) -> Any:
    """Returns the tables after a hundred steps, whole in every process."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(mode, mode))
    sharding = NamedSharding(mesh, spec)
    tables = jax.device_put(jax.device_get(make_tables()), sharding)
    given = dict.fromkeys(tables, sharding) if mode == AxisType.Auto else None
    tx = ember_optax.ember(1e-2, param_shardings=given)
    steps = jax.jit(hundred_steps, static_argnums=0)
    with jax.set_mesh(mesh):
        assert_replicated(table_moments(jax.jit(tx.init)(tables)), mesh)
        result, state = steps(tx, tables)
        again, _ = steps(tx, tables)
    assert_replicated(table_moments(state), mesh)
    result, again = multihost_utils.process_allgather((result, again), tiled=True)
    jax.tree.map(np.testing.assert_array_equal, result, again)
    return result


def main(path: str) -> None:
    """Writes what each layout in each mode has come to."""
    distributed.initialize()
    results = {
        f"{mode}/{layout}/{name}": table
        for mode, axis_type in MODES.items()
        for layout, spec in LAYOUTS.items()
        for name, table in train(axis_type, spec).items()
    }
    first = {f"first/{name}": table for name, table in make_tables().items()}
    if distributed.is_primary():
        np.savez(path, **results, **first)


if __name__ == "__main__":
    main(sys.argv[1])
