"""Bad input gets an early ValueError that can be acted upon.

Each message says where (the path of the parameter), what was found, what was expected
and the way out.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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


NO_NUMBERS = {
    "none": None,
    "text": "0.9",
    "list": [0.9],
    "array": jnp.array([0.9, 0.9]),
}


@both
@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_a_b2_that_is_no_number(factory: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="b2") as error:
        factory(b2=value)
    assert_says(error, f"b2 is {value!r}", "a number, or a schedule")


@both
@pytest.mark.parametrize(
    "value", [*NO_NUMBERS.values(), jnp.sqrt], ids=[*NO_NUMBERS, "schedule"]
)
def test_an_eps_that_is_no_number(factory: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="eps") as error:
        factory(eps=value)
    assert_says(error, f"eps is {value!r}", "one number", "inject_hyperparams")


@both
@pytest.mark.parametrize("value", [1.0, -0.1, np.nan, jnp.bfloat16(0.9), None])
def test_a_schedule_of_b2_that_gives_no_decay(factory: Any, value: Any) -> None:
    tx = factory(b2=lambda _: value)
    with pytest.raises(ValueError, match=r"b2 is (1\.0|-0\.1|nan|bfloat16|None), "):
        tx.init({"embed": jnp.ones((4, 2))})


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
