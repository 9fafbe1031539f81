"""Gradients and states that do not fit get an early ValueError."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import ember_optax
from tests.unit.test_errors import TABLE, assert_says, shaped
from tests.unit.test_errors_of_tables import MESH, update

# In update, when it is traced


@pytest.mark.parametrize(
    ("shape", "found", "expected"),
    [
        ((6, 4), "col of (3,)", "(4,)"),
        ((7, 3), "row of (6,)", "(7,)"),
        ((6, 3, 1), "col of (3,)", "(3, 1)"),
    ],
)
def test_a_gradient_of_another_shape(
    shape: tuple[int, ...], found: str, expected: str
) -> None:
    with pytest.raises(ValueError, match="embed") as error:
        update({"m": {"embed": shaped(*shape)}}, {"m": {"embed": shaped(6, 3)}})
    way_out = "call init again"
    assert_says(error, "'m/embed'", f"shape {shape}", found, expected, way_out)


@pytest.mark.parametrize(
    ("grads", "parts"),
    [
        ({"embed": shaped(6, 3)}, ["'head'", "gradients are of 'embed'"]),
        ({}, ["moments of 'embed', 'head'", "gradients are of no table"]),
        ({"embed": shaped(6, 3), "head": None}, ["'head'", "'embed'"]),
        (
            {"embed": shaped(6, 3), "head": shaped(3, 6), "new": shaped(6, 3)},
            ["gradient of 'new'", "state holds the moments of 'embed', 'head'"],
        ),
    ],
    ids=["missing", "empty", "none", "additional"],
)
def test_the_state_of_another_model(grads: Any, parts: list[str]) -> None:
    with pytest.raises(ValueError, match="The state") as error:
        update(grads, {"embed": shaped(6, 3), "head": shaped(3, 6)})
    assert_says(error, *parts, "call init again with these parameters")


@pytest.mark.parametrize(
    ("grad", "found"),
    [
        (shaped(6), "shape (6,)"),
        (shaped(6, 3, dtype=jnp.int32), "dtype int32"),
        (shaped(6, 3, dtype=jnp.complex64), "dtype complex64"),
    ],
    ids=["one_axis", "int32", "complex64"],
)
def test_a_gradient_that_is_no_table(grad: Any, found: str) -> None:
    with pytest.raises(ValueError, match="embed") as error:
        update({"embed": grad}, {"embed": shaped(6, 3)})
    assert_says(error, "'embed'", found, "optax.multi_transform")


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (ember_optax.ember(1e-2).init(TABLE), "tuple"),
        (optax.EmptyState(), "EmptyState"),
        ({"count": 0, "tables": {}}, "dict"),
        (None, "NoneType"),
    ],
    ids=["ember", "empty", "dict", "none"],
)
def test_the_state_of_another_transformation(state: Any, found: str) -> None:
    with pytest.raises(ValueError, match="state of type") as error:
        ember_optax.scale_by_ember().update(TABLE, state)
    assert_says(error, found, "an EmberState is needed", "what init or the last update")


@pytest.mark.parametrize("axis_names", [("y", None), ("x", "y")])
def test_axis_names_of_no_manual_axis(axis_names: Any) -> None:
    tx = ember_optax.scale_by_ember(vocab_axis=0, axis_names=axis_names)
    state = tx.init(TABLE)
    over_x = jax.shard_map(
        lambda: tx.update(TABLE, state)[0],
        mesh=MESH,
        in_specs=(),
        out_specs=P(),
        axis_names={"x"},
    )
    with pytest.raises(ValueError, match="axis_names") as error:
        jax.jit(over_x)()
    assert_says(error, "has 'y'", "not inside a jax.shard_map", "outside of one none")


def test_axis_names_outside_of_shard_map() -> None:
    tx = ember_optax.scale_by_ember(vocab_axis=0, axis_names=("x", None))
    with jax.set_mesh(MESH), pytest.raises(ValueError, match="axis_names has 'x'"):
        tx.update(TABLE, tx.init(TABLE))


@pytest.mark.parametrize(
    "learning_rate", [None, "1e-2", [1e-2], True, jnp.ones(2), {"a": 1.0}], ids=str
)
def test_a_learning_rate_that_is_no_number(learning_rate: Any) -> None:
    with pytest.raises(ValueError, match=r"learning_rate is .* number, or a schedule"):
        ember_optax.ember(learning_rate)


@pytest.mark.parametrize("learning_rate", [0, 1, np.float32(0.1), jnp.array(0.1)])
def test_a_learning_rate_that_is_a_number(learning_rate: Any) -> None:
    ember_optax.ember(learning_rate)
