"""Bad input gets an early ValueError that can be acted upon.

Each message says where (the path of the parameter), what was found, what was expected
and the way out.
"""

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

TABLE = jnp.ones((6, 3))


def assert_says(error: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    missing = [part for part in parts if part not in str(error.value)]
    assert not missing, str(error.value)


def shaped(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


both = pytest.mark.parametrize(
    "factory",
    [
        ember_optax.scale_by_ember,
        lambda *args, **options: ember_optax.ember(1e-2, *args, **options),
    ],
    ids=["scale_by_ember", "ember"],
)


# When the optimizer is built


@both
@pytest.mark.parametrize("b2", [1.0, 1, 1.5, -0.1, np.nan, np.float32(1), jnp.ones(())])
def test_b2_outside_0_1(factory: Any, b2: Any) -> None:
    with pytest.raises(ValueError, match="b2") as error:
        factory(b2=b2)
    assert_says(error, f"b2 is {b2}", "[0, 1)", "try 0.999")


@pytest.mark.parametrize("b2", [0, 0.0, 0.5, np.nextafter(1.0, 0.0), jnp.array(0.999)])
def test_b2_inside_0_1_is_accepted(b2: Any) -> None:
    ember_optax.ember(1e-2, b2=b2)


@both
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_b2_in_a_type_that_cannot_hold_it(factory: Any, dtype: Any) -> None:
    with pytest.raises(ValueError, match="b2") as error:
        factory(b2=jnp.array(0.9, dtype))
    name = jnp.dtype(dtype).name
    assert_says(error, f"b2 is {name}", "at least float32", "hyperparam_dtype")


@both
@pytest.mark.parametrize("eps", [-1e-8, -1, np.nan, jnp.array(-1.0)])
def test_negative_eps(factory: Any, eps: Any) -> None:
    with pytest.raises(ValueError, match="eps") as error:
        factory(eps=eps)
    assert_says(error, f"eps is {eps}", "must not be negative", "try 1e-8")


def test_zeros_are_accepted() -> None:
    ember_optax.ember(1e-2, b2=0.0, eps=0.0, weight_decay=0.0)


@pytest.mark.parametrize("weight_decay", [-1e-8, -1, np.nan, jnp.array(-1.0)])
def test_negative_weight_decay(weight_decay: Any) -> None:
    with pytest.raises(ValueError, match="weight_decay") as error:
        ember_optax.ember(1e-2, weight_decay=weight_decay)
    assert_says(
        error,
        f"weight_decay is {weight_decay}",
        "must not be negative",
        "a positive one shrinks the tables",
    )


@both
@pytest.mark.parametrize("name", ["b2", "eps"])
@pytest.mark.parametrize(
    "value",
    [None, "0.9", [0.9], jnp.array([0.9, 0.9]), jnp.sqrt],
    ids=["none", "text", "list", "array", "schedule"],
)
def test_a_hyperparameter_that_is_no_number(
    factory: Any, name: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=name) as error:
        factory(**{name: value})
    assert_says(error, f"{name} is {value!r}", "one number", "inject_hyperparams")


def test_a_weight_decay_that_is_no_number() -> None:
    with pytest.raises(ValueError, match=r"weight_decay is None.*one number"):
        ember_optax.ember(1e-2, weight_decay=None)  # pyright: ignore


@both
@pytest.mark.parametrize("column_mean", ["mean", "All", None, True])
def test_unknown_column_mean(factory: Any, column_mean: Any) -> None:
    with pytest.raises(ValueError, match="column_mean") as error:
        factory(column_mean=column_mean)
    assert_says(error, f"column_mean is {column_mean!r}", "'all'", "'active'")


@both
@pytest.mark.parametrize("row_state", ["shard", None, True])
def test_unknown_row_state(factory: Any, row_state: Any) -> None:
    with pytest.raises(ValueError, match="row_state") as error:
        factory(row_state=row_state)
    assert_says(error, f"row_state is {row_state!r}", "'replicated'", "'sharded'")


@both
@pytest.mark.parametrize(
    "vocab_axis",
    [0.5, "0", True, [0], jnp.array(0), {"embed": 0.5}, {"a": 0, "b": True}],
    ids=str,
)
def test_a_vocab_axis_that_is_no_int(factory: Any, vocab_axis: Any) -> None:
    with pytest.raises(ValueError, match="vocab_axis") as error:
        factory(vocab_axis=vocab_axis)
    assert_says(error, f"vocab_axis is {vocab_axis!r}", "must be an int", "mapping")


@pytest.mark.parametrize(
    ("axis", "n_tokens"), [(0, 6), (-2, 6), (1, 3), (-1, 3), (np.int64(1), 3)]
)
def test_a_vocab_axis_that_the_table_has(axis: Any, n_tokens: int) -> None:
    tables = ember_optax.scale_by_ember(vocab_axis=axis).init([TABLE]).tables
    assert tables["0"].row.shape == (n_tokens,)


@pytest.mark.parametrize("jitted", [False, True])
def test_an_injected_vocab_axis(jitted: bool) -> None:
    options = {"learning_rate": 1e-2, "vocab_axis": 0}
    factory = optax.inject_hyperparams(ember_optax.ember)
    with pytest.raises(ValueError, match="vocab_axis") as error:
        (jax.jit if jitted else lambda f: f)(factory(**options).init)(TABLE)
    assert_says(error, "static_args=('vocab_axis',)")
    tx = optax.inject_hyperparams(ember_optax.ember, static_args=("vocab_axis",))(
        **options
    )
    jax.jit(tx.update)(TABLE, tx.init(TABLE), TABLE)


@both
@pytest.mark.parametrize(
    "axis_names", ["x", "xy", ["x", None], ("x",), ("x", "y", "z")]
)
def test_axis_names_that_are_no_pair(factory: Any, axis_names: Any) -> None:
    with pytest.raises(ValueError, match="axis_names") as error:
        factory(axis_names=axis_names, vocab_axis=0)
    assert_says(error, f"axis_names is {axis_names!r}", "must be a pair", "fsdp")


@both
def test_axis_names_without_vocab_axis(factory: Any) -> None:
    with pytest.raises(ValueError, match="axis_names") as error:
        factory(axis_names=("x", None))
    assert_says(error, "('x', None)", "without a vocab_axis", "pass vocab_axis")


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
        ({"embed": P("x")}, "has P('x',) for", "NamedSharding(mesh, spec)"),
        ({"embed": "x"}, "has x for", "NamedSharding(mesh, spec)"),
        (
            {"embed": NamedSharding(MESH, P("x", None, None))},
            "of shape (6, 3)",
            "at most 2 dimensions can be sharded: shorten the spec",
        ),
        (
            {"embed": NamedSharding(MESH, P("y"))},
            "P('y',)",
            "same size: pad the parameter, or shard another axis",
        ),
        (
            {"embed": NamedSharding(MESH, P(None, ("x", "y")))},
            "P(None, ('x', 'y'))",
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


# In update, when it is traced


def update(grads: Any, params: Any) -> Any:
    """Traces an update of gradients with the state of params."""
    tx = ember_optax.scale_by_ember()
    return jax.eval_shape(tx.update, grads, jax.eval_shape(tx.init, params))


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
