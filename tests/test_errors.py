"""Bad input gets an early ValueError that can be acted upon.

Each message says where (the path of the parameter), what was found, what was expected
and the way out.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
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
@pytest.mark.parametrize("axis_names", ["x", ("x",), ("x", "y", "z")])
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


def test_a_vocab_axis_for_an_unknown_path() -> None:
    tx = ember_optax.scale_by_ember(vocab_axis={"embed": 0})
    with pytest.raises(ValueError, match="vocab_axis") as error:
        tx.init({"embed": {"table": TABLE}})
    assert_says(error, "names 'embed'", "'embed/table'", "summarize")


@pytest.mark.parametrize(
    ("shardings", "found", "way_out"),
    [
        ({}, "for none", "tree of shardings with the structure of the parameters"),
        ({"head": P()}, "but for 'head'", "with the structure of the parameters"),
        (
            {"embed": P("x", None, None)},
            "of shape (6, 3)",
            "at most as many dimensions",
        ),
        ({"embed": "x"}, "has x for", "a NamedSharding of at most"),
    ],
    ids=["none", "another", "too_long", "no_sharding"],
)
def test_param_shardings_that_do_not_fit(
    shardings: Any, found: str, way_out: str
) -> None:
    tx = ember_optax.scale_by_ember(param_shardings=shardings)
    with (
        jax.set_mesh(jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))),
        pytest.raises(ValueError, match="param_shardings") as error,
    ):
        tx.init({"embed": TABLE})
    assert_says(error, "'embed'", found, way_out)


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
    assert_says(error, "Two tables", "a name for each", "Rename one")


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
        ({}, ["gradients are of no table"]),
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
