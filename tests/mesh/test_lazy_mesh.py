"""Lazy rows that are sharded over a mesh: each device updates its own rows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ember_optax import lazy
from tests.hlo import collectives
from tests.unit.test_lazy import D, V, table_of, zipf

ROWS = V // 8 * 8  # divisible by the devices; larger ids are padding
BATCH = 64  # ids of all devices together
LAYOUTS = {
    "one axis": P("x"),
    "two axes": P(("x", "y")),
    "replicated": P(),
}
MODES = [AxisType.Auto, AxisType.Explicit]
every_mode = pytest.mark.parametrize("mode", MODES, ids=str)


def sharding(mode: AxisType, layout: str) -> NamedSharding:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(mode, mode))
    return NamedSharding(mesh, LAYOUTS[layout])


def given(rows: NamedSharding) -> dict[str, Any]:
    """The shardings, which Auto axes need and Explicit axes know."""
    auto = AxisType.Auto in rows.mesh.axis_types
    return {"param_shardings": rows} if auto else {}


def train(table: Any, ids: Any, targets: Any, options: dict[str, Any]) -> Any:
    """Trains rows towards targets, a step for each batch."""

    def step(carry: Any, batch: Any) -> Any:
        ids, targets = batch

        def loss(rows: jax.Array) -> jax.Array:
            return jnp.mean((rows - targets) ** 2)

        grads = jax.grad(loss)(lazy.lookup(*carry, ids))
        rates = {"learning_rate": 1e-2, "weight_decay": 0.1}
        return lazy.update(*carry, ids, grads, **rates, **options), None

    state = lazy.init(table, weight_decay=True, **options)
    return jax.lax.scan(step, (table, state), (ids, targets))[0]


@every_mode
@pytest.mark.parametrize("layout", ["two axes", "replicated"])
def test_results_and_their_shardings(mode: AxisType, layout: str) -> None:
    rows = sharding(mode, layout)
    table, (ids, targets) = table_of()[:ROWS], zipf(100)
    expected = jax.jit(functools.partial(train, options={}))(table, ids, targets)
    batch = NamedSharding(rows.mesh, P(None, "x"))
    with jax.set_mesh(rows.mesh):
        jitted = jax.jit(functools.partial(train, options=given(rows)))
        args = jax.device_put((ids, targets), batch)
        actual = jitted(jax.device_put(table, rows), *args)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-6, atol=2e-6)
    new_table, state = actual
    for x in (new_table, state.row, state.last_step, state.decay.row):
        assert x.sharding.is_equivalent_to(rows, x.ndim)
    for x in (state.col, state.count, state.decay.total):
        assert x.sharding.is_fully_replicated


def compile_on(
    rows: NamedSharding,
    n_rows: int,
    function: Any,
    dtype: Any = jnp.float32,
    **donated: Any,
) -> Any:
    """Compiles a function of table, state, ids and gradients, all of them sharded."""

    def shape(spec: P, dtype: Any, *shape: int) -> Any:
        sharding = NamedSharding(rows.mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    state = lazy.LazyState(
        row=shape(rows.spec, jnp.float32, n_rows),
        last_step=shape(rows.spec, jnp.int32, n_rows),
        col=shape(P(), jnp.float32, D),
        count=shape(P(), jnp.int32),
    )
    args = (
        shape(rows.spec, dtype, n_rows, D),
        state,
        shape(P(("x", "y")), jnp.int32, BATCH),
        shape(P(("x", "y")), jnp.float32, BATCH, D),
    )
    with jax.set_mesh(rows.mesh):
        return jax.jit(function, **donated).lower(*args).compile()


@every_mode
@pytest.mark.parametrize(
    ("layout", "factored"), [("one axis", False), ("two axes", True)]
)
def test_a_step_communicates_the_batch(
    mode: AxisType, layout: str, factored: bool
) -> None:
    rows = sharding(mode, layout)
    options = {"learning_rate": 1e-2, "factored": factored}
    step = functools.partial(lazy.update, **options, **given(rows))
    small, large = (
        compile_on(rows, n, step, donate_argnums=(0, 1)) for n in (80_000, 8_000_000)
    )
    found = collectives(large.as_text())
    assert found == collectives(small.as_text())
    assert sorted((c.op, c.elements) for c in found) == [
        ("all-gather", BATCH),  # ids
        ("all-gather", BATCH * D),  # gradients
        *([("all-reduce", D)] if factored else []),  # sums of the columns
    ]
    temporaries = large.memory_analysis().temp_size_in_bytes
    assert temporaries == small.memory_analysis().temp_size_in_bytes < 1e5


@every_mode
@pytest.mark.parametrize("layout", ["two axes"])
def test_reading_communicates_the_batch(mode: AxisType, layout: str) -> None:
    rows = sharding(mode, layout)
    compiled = compile_on(rows, 8_000_000, lambda *args: lazy.lookup(*args[:3]))
    found = collectives(compiled.as_text())
    assert 0 < sum(c.elements for c in found) <= 2 * BATCH * D
    assert compiled.memory_analysis().temp_size_in_bytes < 1e5


def test_columns_cannot_be_sharded() -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    table = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, P("x", "y")))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="first axis only"):
        lazy.init(table)
