"""Tables, states and gradients that do not fit get an early ValueError."""

import contextlib
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from tests.unit.test_errors import TABLE, assert_says, both


def update(grads: Any, params: Any) -> Any:
    """Traces an update of gradients with the state of params."""
    tx = ember_optax.scale_by_ember()
    return jax.eval_shape(tx.update, grads, jax.eval_shape(tx.init, params))


# In init


@both
@pytest.mark.parametrize(
    ("leaf", "found", "expected"),
    [
        (jnp.ones(3), "shape (3,)", "at least one more"),
        (jnp.ones(()), "shape ()", "at least one more"),
        (np.ones((6, 3), np.int8), "dtype int8", "floating-point"),
        (np.ones((6, 3), bool), "dtype bool", "floating-point"),
        (np.ones((6, 3), np.complex64), "dtype complex64", "floating-point"),
        (0.5, "a float", "an array"),
        ("text", "a str", "an array"),
        (object(), "a object", "an array"),
        (SimpleNamespace(shape=(6, 3)), "a SimpleNamespace", "an array"),
        (SimpleNamespace(dtype=jnp.float32), "a SimpleNamespace", "an array"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_leaf_that_is_no_table(
    factory: Any, leaf: Any, found: str, expected: str
) -> None:
    with pytest.raises(ValueError, match="norm") as error:
        factory().init({"embed": TABLE, "layers": [{"norm": leaf}]})
    assert_says(
        error, "'layers/0/norm'", found, expected, "optax.multi_transform",
        "ember_optax.label_token_tables",
    )  # fmt: skip


@both
@pytest.mark.parametrize("shape", [(0, 3), (6, 0), (6, 0, 3)])
def test_an_empty_axis(factory: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="embed") as error:
        factory().init({"model": {"embed": jnp.ones(shape)}})
    assert_says(error, "'model/embed'", str(shape), "not empty", "Remove the parameter")


@pytest.mark.parametrize("axis", [2, -3])
@pytest.mark.parametrize("for_one_path", [False, True])
def test_a_vocab_axis_that_the_table_does_not_have(
    axis: int, for_one_path: bool
) -> None:
    tx = ember_optax.scale_by_ember(
        vocab_axis={"embed/table": axis} if for_one_path else axis
    )
    with pytest.raises(ValueError, match="vocab_axis") as error:
        tx.init({"embed": {"table": TABLE}})
    assert_says(error, f"vocab_axis is {axis}", "'embed/table'", "(6, 3)", "its 2 axes")


def test_vocab_axes_for_unknown_paths() -> None:
    tx = ember_optax.scale_by_ember(
        vocab_axis=dict.fromkeys(["wte", "embed", "head", "mtp", "x", "a"], 0)
    )
    with pytest.raises(ValueError, match="vocab_axis") as error:
        tx.init({"embed": {"table": TABLE}, "head": TABLE})
    assert_says(
        error, "names 'a', 'embed', 'mtp', 'wte', 'x'", "'embed/table', 'head'",
        "summarize",
    )  # fmt: skip


def test_vocab_axes_of_a_group_without_tables() -> None:
    ember_optax.scale_by_ember(vocab_axis={"embed": 0}).init({})


def auto_mesh(*shape: int) -> Mesh:
    return jax.make_mesh(shape, ("x", "y")[: len(shape)], (AxisType.Auto,) * len(shape))


MESH = auto_mesh(2, 4)


@pytest.mark.parametrize(
    ("shardings", "found", "way_out"),
    [
        ({}, "for none", "tree of shardings with the structure of the parameters"),
        (
            {"wte": P(), "head": P()},
            "but for 'head', 'wte'",
            "with the structure of the parameters",
        ),
        ({"embed": P("x")}, f"has {P('x')} for", "NamedSharding(mesh, spec)"),
        ({"embed": "x"}, "has x for", "NamedSharding(mesh, spec)"),
        (
            {"embed": NamedSharding(MESH, P("x", None, None))},
            "of shape (6, 3)",
            "at most 2 dimensions can be sharded: shorten the spec",
        ),
        (
            {"embed": NamedSharding(MESH, P("y"))},
            str(P("y")),
            "same size: pad the parameter, or shard another axis",
        ),
        (
            {"embed": NamedSharding(MESH, P(None, ("x", "y")))},
            str(P(None, ("x", "y"))),
            "same size: pad the parameter, or shard another axis",
        ),
    ],
    ids=["none", "another", "spec", "text", "too_long", "rows", "columns"],
)
@pytest.mark.parametrize("mesh_in_context", [False, True])
def test_param_shardings_that_do_not_fit(
    shardings: Any, found: str, way_out: str, mesh_in_context: bool
) -> None:
    tx = ember_optax.scale_by_ember(param_shardings=shardings)
    with jax.set_mesh(MESH) if mesh_in_context else contextlib.nullcontext():
        state = ember_optax.scale_by_ember().init({"embed": TABLE})
        for call in (tx.init, lambda params: tx.update(params, state)):
            with pytest.raises(ValueError, match="param_shardings has") as error:
                call({"embed": TABLE})
            assert_says(error, "'embed'", found, way_out)


def test_param_shardings_on_two_meshes() -> None:
    meshes = {"embed": MESH, "head": auto_mesh(2)}
    shardings = {path: NamedSharding(mesh, P("x")) for path, mesh in meshes.items()}
    tx = ember_optax.scale_by_ember(param_shardings=shardings)
    with pytest.raises(ValueError, match="param_shardings") as error:
        tx.init({"embed": TABLE, "head": TABLE})
    assert_says(error, "'x': 2, 'y': 4", "'embed'", "'x': 2,", "'head'", "on one mesh")
    with pytest.raises(ValueError, match="on one mesh"):
        ember_optax.opt_state_shardings(
            optax.identity(), dict.fromkeys(meshes, TABLE), shardings
        )


def test_param_shardings_on_another_mesh_than_that_of_the_context() -> None:
    shardings = {"embed": NamedSharding(auto_mesh(2), P("x"))}
    tx = ember_optax.scale_by_ember(param_shardings=shardings)
    with (
        jax.set_mesh(MESH),
        pytest.raises(ValueError, match="param_shardings") as error,
    ):
        tx.init({"embed": TABLE})
    assert_says(
        error, "'x': 2,", "'embed'", "'x': 2, 'y': 4", "the same to jax.set_mesh"
    )


@pytest.mark.parametrize("mesh", [MESH, auto_mesh(2)])
def test_sharded_rows_that_only_xla_knows(mesh: Mesh) -> None:
    tx = ember_optax.scale_by_ember(row_state="sharded")
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="row_state") as error:
        tx.init({"embed": TABLE})
    assert_says(error, "is 'sharded'", "rows of 'embed'", "pass param_shardings")


def test_sharded_rows_without_anything_to_pin() -> None:
    tx = ember_optax.scale_by_ember(row_state="sharded")
    for mesh in (None, auto_mesh(1, 1), MESH):
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            tx.init({} if mesh is MESH else {"embed": TABLE})


@pytest.mark.parametrize("shardings", [None, {"embed": NamedSharding(MESH, P("x"))}])
def test_sharded_rows_on_a_mesh_of_both_kinds_of_axes(shardings: Any) -> None:
    tx = ember_optax.scale_by_ember(row_state="sharded", param_shardings=shardings)
    mesh = jax.make_mesh((2, 4), ("x", "y"), (AxisType.Auto, AxisType.Explicit))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="row_state") as error:
        tx.init({"embed": TABLE})
    assert_says(error, "is 'sharded'", "'x': 2, 'y': 4", "row_state='replicated'")


@pytest.mark.parametrize(
    "params",
    [
        {"embed/table": TABLE, "embed": {"table": TABLE}},
        {"embed/~/table": TABLE, "embed": {"table": TABLE}},
    ],
    ids=["slash", "haiku"],
)
def test_two_tables_of_one_name(params: Any) -> None:
    with pytest.raises(ValueError, match="embed/table") as error:
        ember_optax.scale_by_ember().init(params)
    assert_says(error, "Two leaves", "a name for each", "Rename one")


@pytest.mark.parametrize(
    "fail",
    [
        lambda: ember_optax.scale_by_ember().init(jnp.ones(3)),
        lambda: ember_optax.scale_by_ember().init(jnp.ones((3, 0))),
        lambda: ember_optax.scale_by_ember().init(jnp.ones((3, 3), jnp.int32)),
        lambda: ember_optax.scale_by_ember().init("text"),
        lambda: ember_optax.scale_by_ember().init(0.5),
        lambda: ember_optax.scale_by_ember(vocab_axis=5).init(TABLE),
        lambda: ember_optax.scale_by_ember(vocab_axis={"x": 0}).init(TABLE),
        lambda: update(TABLE, {"embed": TABLE}),
        lambda: update({"embed": TABLE}, TABLE),
        lambda: update(TABLE, jnp.ones((6, 4))),
        lambda: ember_optax.opt_state_shardings(optax.identity(), TABLE, {}),
        lambda: ember_optax.opt_state_shardings(optax.identity(), TABLE, "x"),
        lambda: ember_optax.label_token_tables(TABLE),
    ],
)
def test_a_bare_array_has_no_path(fail: Any) -> None:
    with pytest.raises(ValueError, match="the bare array") as error:
        fail()
    assert "''" not in str(error.value)


@pytest.mark.parametrize("params", [None, jax.tree_util.Partial(jnp.sqrt)], ids=type)
def test_no_arrays_are_no_error(params: Any) -> None:
    # Such trees are nearly what `optax.tree.map_params` calls init with.
    assert ember_optax.scale_by_ember().init(params).tables == {}
