"""Steps of Ember compiled on a mesh, of CPU devices or of a TPU pod."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from benchmarks.collectives.run import compile_step, sharded_state
from examples.lm.hlo import Collective

# For bounds on temporaries: the compiler decides on what it stores, and nothing else
# that tests hold depends on it.
holds_no_squares = pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2),
    reason="XLA:CPU stores the squares of every gradient before jax 0.10.2",
)


def all_reduce(n: int) -> Collective:
    """An all-reduce of n floats."""
    return Collective("all-reduce", n, 4 * n)


def compile_ember(
    mesh: jax.sharding.Mesh,
    spec: P,
    shapes: list[tuple[int, int]],
    *,
    shardings_given: bool = True,
    **options: Any,
) -> Any:
    """Compiles update and apply of several tables.

    Args:
      mesh: of Explicit axes, or of Auto axes, where `param_shardings` are given.
      spec: how each of the tables is sharded.
      shapes: of the tables.
      shardings_given: False leaves Auto axes to XLA.
      **options: `row_state`.
    """
    sharding = NamedSharding(mesh, spec)
    params = {
        f"table_{i}": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        for i, shape in enumerate(shapes)
    }
    if AxisType.Auto in mesh.axis_types and shardings_given:
        given = dict.fromkeys(params, sharding)
    else:
        given = None
    tx = ember_optax.ember(1e-2, param_shardings=given, **options)
    return compile_step(tx, params, sharded_state(tx, params, **options))
