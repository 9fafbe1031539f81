"""Invalid input raises an early ValueError that tells how to fix it.

Each message names the argument or the path of the parameter, what was found, what was
expected and a way out.
"""

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


def shaped(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def assert_says(error: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    missing = [part for part in parts if part not in str(error.value)]
    assert not missing, str(error.value)


# When the optimizer is built

NUMBER_OR_SCHEDULE = "must be a number or a schedule"
ONE_NUMBER = "must be one number (for a schedule of it, use optax.inject_hyperparams)"
NOT_NUMBERS = [None, "0.9", [0.9], True, jnp.array([0.9, 0.9]), {"a": 1.0}]

INVALID = {
    "must be in [0, 1)": {
        "b2": [1.0, 1, 1.5, -0.1, np.nan, np.float32(1), jnp.ones(())]
    },
    "cannot hold a decay close to 1": {"b2": [jnp.bfloat16(0.9), jnp.float16(0.9)]},
    NUMBER_OR_SCHEDULE: {"b2": NOT_NUMBERS, "learning_rate": NOT_NUMBERS},
    ONE_NUMBER: {
        "eps": [*NOT_NUMBERS, jnp.sqrt],
        "weight_decay": [*NOT_NUMBERS, jnp.sqrt],
    },
    "must be positive": {"eps": [0, 0.0, -1e-8, np.nan, jnp.array(-1.0)]},
    "must not be negative": {
        argument: [-1e-8, -1, np.nan, jnp.array(-1.0)]
        for argument in ("weight_decay", "learning_rate")
    },
    "must be an int, or a mapping": {
        "vocab_axis": [0.5, "0", True, [0], jnp.array(0), {"a": 0, "b": True}]
    },
    "must be a pair": {"axis_names": ["x", "xy", ["x", None], ("x",), ("x", "y", "z")]},
    "without a vocab_axis": {"axis_names": [("x", None)]},
}


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        pytest.param(
            argument,
            value,
            message,
            id=f"{argument}-{getattr(value, '__name__', value)}",
        )
        for message, arguments in INVALID.items()
        for argument, values in arguments.items()
        for value in values
    ],
)
def test_invalid_argument_raises(argument: str, value: Any, message: str) -> None:
    options = {"learning_rate": 1e-2} | {argument: value}
    if message == "must be a pair":
        options["vocab_axis"] = 0
    with pytest.raises(ValueError, match=argument) as error:
        ember_optax.ember(**options)
    assert_says(error, message)
    if argument not in ("learning_rate", "weight_decay"):
        del options["learning_rate"]
        with pytest.raises(ValueError, match=argument):
            ember_optax.scale_by_ember(**options)


@pytest.mark.parametrize(
    "options",
    [
        *[{"b2": b2} for b2 in (0, 0.0, np.nextafter(1.0, 0.0), jnp.array(0.999))],
        *[{"learning_rate": x} for x in (0, 1, np.float32(0.1), jnp.array(0.1))],
        {"eps": 1e-30, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_valid_arguments_are_accepted(options: Any) -> None:
    ember_optax.ember(**{"learning_rate": 1e-2} | options)


@pytest.mark.parametrize("value", [1.0, -0.1, np.nan, jnp.bfloat16(0.9), None])
def test_schedule_with_an_invalid_first_decay_raises(value: Any) -> None:
    with pytest.raises(ValueError, match=r"b2 (must be|is bfloat16)"):
        ember_optax.scale_by_ember(b2=lambda _: value).init(TABLE)


@pytest.mark.parametrize("jitted", [False, True])
def test_injected_vocab_axis_must_be_static(jitted: bool) -> None:
    options = {"learning_rate": 1e-2, "vocab_axis": 0}
    init = optax.inject_hyperparams(ember_optax.ember)(**options).init
    with pytest.raises(ValueError, match=r"static_args=\('vocab_axis',\)"):
        (jax.jit(init) if jitted else init)(TABLE)
    factory = optax.inject_hyperparams(ember_optax.ember, static_args=("vocab_axis",))
    tx = factory(**options)
    jax.jit(tx.update)(TABLE, tx.init(TABLE), TABLE)


# In init

TWO_WAYS_OUT = ("optax.multi_transform", "ember_optax.label_token_tables")


@pytest.mark.parametrize(
    ("leaf", "parts"),
    [
        (jnp.ones(3), ("shape (3,)", "at least one more", *TWO_WAYS_OUT)),
        (jnp.ones(()), ("shape ()", "at least one more", *TWO_WAYS_OUT)),
        (np.ones((6, 3), np.int8), ("dtype int8", "floating-point", *TWO_WAYS_OUT)),
        (np.ones((6, 3), bool), ("dtype bool", "floating-point", *TWO_WAYS_OUT)),
        (np.ones((6, 3), np.complex64), ("dtype complex64", *TWO_WAYS_OUT)),
        (0.5, ("a float", "an array", *TWO_WAYS_OUT)),
        ("text", ("a str", "an array", *TWO_WAYS_OUT)),
        (SimpleNamespace(shape=(6, 3)), ("a SimpleNamespace", *TWO_WAYS_OUT)),
        (jnp.ones((0, 3)), ("(0, 3)", "not empty", "Remove the parameter")),
        (jnp.ones((6, 0, 3)), ("(6, 0, 3)", "not empty", "Remove the parameter")),
    ],
    ids=lambda x: x[0] if isinstance(x, tuple) else "",
)
def test_leaf_that_is_not_a_table_raises(leaf: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="norm") as error:
        ember_optax.ember(1e-2).init({"embed": TABLE, "layers": [{"norm": leaf}]})
    assert_says(error, "'layers/0/norm'", *parts)


@pytest.mark.parametrize("vocab_axis", [2, -3, {"embed/table": 2}])
def test_vocab_axis_that_the_table_lacks_raises(vocab_axis: Any) -> None:
    tx = ember_optax.scale_by_ember(vocab_axis=vocab_axis)
    with pytest.raises(ValueError, match="vocab_axis is") as error:
        tx.init({"embed": {"table": TABLE}})
    assert_says(error, "'embed/table'", "(6, 3)", "its 2 axes")


def test_vocab_axis_of_unknown_paths_raises() -> None:
    tx = ember_optax.scale_by_ember(vocab_axis={"embed": 0, "wte": 0})
    with pytest.raises(ValueError, match="vocab_axis names 'embed', 'wte'") as error:
        tx.init({"embed": {"table": TABLE}, "head": TABLE})
    assert_says(error, "'embed/table', 'head'", "summarize")
    tx.init({})  # a group without tables is fine


def auto_mesh(*shape: int) -> Mesh:
    return jax.make_mesh(shape, ("x", "y")[: len(shape)], (AxisType.Auto,) * len(shape))


MESH = auto_mesh(2, 4)


@pytest.mark.parametrize(
    ("shardings", "parts"),
    [
        ({}, ("for none", "tree of shardings with the structure of the parameters")),
        ({"wte": P(), "head": P()}, ("but for 'head', 'wte'", "or a prefix of it")),
        ({"embed": P("x")}, (f"has {P('x')} for", "NamedSharding(mesh, spec)")),
        ({"embed": "x"}, ("has x for", "NamedSharding(mesh, spec)")),
        (
            {"embed": NamedSharding(MESH, P("x", None, None))},
            ("of shape (6, 3)", "at most 2 dimensions can be sharded"),
        ),
        (
            {"embed": NamedSharding(MESH, P("y"))},
            (str(P("y")), "same size: pad the parameter, or shard another axis"),
        ),
    ],
    ids=["none", "other paths", "spec", "text", "too long", "uneven"],
)
def test_param_shardings_that_do_not_fit_raise(
    shardings: Any, parts: tuple[str, ...]
) -> None:
    tx = ember_optax.scale_by_ember(param_shardings=shardings)
    state = ember_optax.scale_by_ember().init({"embed": TABLE})
    for call in (tx.init, lambda params: tx.update(params, state)):
        with pytest.raises(ValueError, match="param_shardings has") as error:
            call({"embed": TABLE})
        assert_says(error, "'embed'", *parts)


def test_param_shardings_on_two_meshes_raise() -> None:
    shardings = {
        "embed": NamedSharding(MESH, P("x")),
        "head": NamedSharding(auto_mesh(2), P("x")),
    }
    params = {"embed": TABLE, "head": TABLE}
    tx = ember_optax.scale_by_ember(param_shardings=shardings)
    for call in (
        lambda: tx.init(params),
        lambda: ember_optax.opt_state_shardings(optax.identity(), params, shardings),
    ):
        with pytest.raises(ValueError, match="param_shardings has") as error:
            call()
        assert_says(error, "'x': 2, 'y': 4", "'embed'", "'head'", "on one mesh")


def test_param_shardings_on_another_mesh_than_the_context_raise() -> None:
    shardings = {"embed": NamedSharding(auto_mesh(2), P("x"))}
    tx = ember_optax.scale_by_ember(param_shardings=shardings)
    with jax.set_mesh(MESH), pytest.raises(ValueError, match="param_shard") as error:
        tx.init({"embed": TABLE})
    assert_says(error, "'embed'", "'x': 2, 'y': 4", "the same to jax.set_mesh")


@pytest.mark.parametrize("params", [None, jax.tree_util.Partial(jnp.sqrt)], ids=type)
def test_tree_without_arrays_is_accepted(params: Any) -> None:
    # Such trees resemble the placeholder that optax.tree.map_params passes to init.
    assert ember_optax.scale_by_ember().init(params).tables == {}


# In update


def update(grads: Any, params: Any) -> Any:
    """Traces an update of gradients with the state of params."""
    tx = ember_optax.scale_by_ember()
    return jax.eval_shape(tx.update, grads, jax.eval_shape(tx.init, params))


TWO = {"embed": shaped(6, 3), "head": shaped(3, 6)}


@pytest.mark.parametrize(
    ("grads", "params", "parts"),
    [
        (
            {"m": {"embed": shaped(6, 4)}},
            {"m": {"embed": shaped(6, 3)}},
            ("'m/embed'", "shape (6, 4)", "col of (3,)", "(4,)", "call init again"),
        ),
        (
            {"embed": shaped(7, 3)},
            {"embed": shaped(6, 3)},
            ("shape (7, 3)", "row of (6,)", "(7,)", "resize_vocab"),
        ),
        (
            {"embed": shaped(6, 3, 1)},
            {"embed": shaped(6, 3)},
            ("shape (6, 3, 1)", "col of (3,)", "(3, 1)"),
        ),
        ({"embed": shaped(6, 3)}, TWO, ("'head'", "gradients are of 'embed'")),
        ({}, TWO, ("moments of 'embed', 'head'", "gradients are of no table")),
        (
            TWO | {"new": shaped(6, 3)},
            TWO,
            ("gradient of 'new'", "moments of 'embed', 'head'", "call init again"),
        ),
        (
            {"embed": shaped(6, 3, dtype=jnp.int32)},
            {"embed": shaped(6, 3)},
            ("'embed'", "dtype int32", "optax.multi_transform"),
        ),
    ],
    ids=["width", "tokens", "axes", "missing", "empty", "additional", "integers"],
)
def test_gradients_that_do_not_fit_the_state_raise(
    grads: Any, params: Any, parts: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=r"gradient|'embed'") as error:
        update(grads, params)
    assert_says(error, *parts)


@pytest.mark.parametrize(
    "state",
    [ember_optax.ember(1e-2).init(TABLE), optax.EmptyState(), {"count": 0}, None],
    ids=lambda state: type(state).__name__,
)
def test_state_of_another_transformation_raises(state: Any) -> None:
    with pytest.raises(ValueError, match="state of type") as error:
        ember_optax.scale_by_ember().update(TABLE, state)
    name = type(state).__name__
    assert_says(error, name, "an EmberState is needed", "what init or the last update")


def test_axis_names_outside_of_their_shard_map_raise() -> None:
    tx = ember_optax.scale_by_ember(vocab_axis=0, axis_names=("y", None))
    state = tx.init(TABLE)
    over_x = jax.shard_map(
        lambda: tx.update(TABLE, state)[0],
        mesh=MESH,
        in_specs=(),
        out_specs=P(),
        axis_names={"x"},
    )
    with pytest.raises(ValueError, match="axis_names has 'y'") as error:
        jax.jit(over_x)()
    assert_says(error, "not inside a jax.shard_map", "None outside shard_map")
    with jax.set_mesh(MESH), pytest.raises(ValueError, match="axis_names has 'y'"):
        tx.update(TABLE, state)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ember_optax.scale_by_ember().init(jnp.ones(3)),
        lambda: ember_optax.scale_by_ember().init(jnp.ones((3, 0))),
        lambda: ember_optax.scale_by_ember().init("text"),
        lambda: ember_optax.scale_by_ember(vocab_axis=5).init(TABLE),
        lambda: ember_optax.scale_by_ember(vocab_axis={"x": 0}).init(TABLE),
        lambda: update(TABLE, {"embed": TABLE}),
        lambda: update({"embed": TABLE}, TABLE),
        lambda: update(TABLE, jnp.ones((6, 4))),
        lambda: ember_optax.opt_state_shardings(optax.identity(), TABLE, {}),
        lambda: ember_optax.label_token_tables(TABLE),
    ],
)
def test_messages_about_a_bare_array_name_no_path(call: Any) -> None:
    with pytest.raises(ValueError, match="the bare array") as error:
        call()
    assert "''" not in str(error.value)
