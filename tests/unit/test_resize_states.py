"""A vocabulary that changes: states of every origin, and what is refused."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from tests.unit.test_resize import D, V, make_params, make_state, make_tx, tables

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")


@pytest.fixture
def state() -> Any:
    return make_state(make_tx(), make_params())


# Where states come from.


def test_under_jit(state: Any) -> None:
    old, new = make_params(), make_params(V + 2)

    @jax.jit
    def resize(state: Any, tokens: jax.Array) -> Any:
        return ember_optax.resize_vocab(state, old, new, tokens=tokens)

    tokens = np.array([-1, *range(V), -1])
    expected = ember_optax.resize_vocab(state, old, new, tokens=tokens)
    chex.assert_trees_all_close(resize(state, tokens), expected, rtol=1e-6)


def test_shapes_are_enough(state: Any) -> None:
    old, new = make_params(), make_params(V + 2)
    abstract = jax.eval_shape(lambda: (old, new))
    chex.assert_trees_all_equal(
        ember_optax.resize_vocab(state, *abstract),
        ember_optax.resize_vocab(state, old, new),
    )


def test_linen_boxes() -> None:
    def boxed(n_tokens: int) -> Any:
        return {"embed": nn.LogicallyPartitioned(jnp.ones((n_tokens, 2)), ("v", "d"))}

    tx = ember_optax.ember(1e-2)
    _, state = tx.update(boxed(4), tx.init(boxed(4)), boxed(4))
    state = ember_optax.resize_vocab(state, boxed(4), boxed(6))
    np.testing.assert_allclose(tables(state)["embed"].row, np.full(6, 0.001), rtol=1e-6)


def test_vocabularies_of_different_tables() -> None:
    old = {"embed": jnp.ones((4, 2)), "char_embed": jnp.ones((3, 2))}
    new = {"embed": jnp.ones((4, 2)), "char_embed": jnp.ones((5, 2))}
    tx = ember_optax.ember(1e-2, b2=0.5)
    grads = jax.tree.map(lambda x: jnp.arange(1.0, 1 + x.size).reshape(x.shape), old)
    _, state = tx.update(grads, tx.init(old), old)
    tokens = {"embed": np.array([3, 2, 1, 0])}
    resized = ember_optax.resize_vocab(state, old, new, tokens=tokens)
    before, after = tables(state), tables(resized)
    np.testing.assert_array_equal(after["embed"].row, before["embed"].row[::-1])
    np.testing.assert_array_equal(after["char_embed"].row[:3], before["char_embed"].row)


@pytest.mark.parametrize("row_state", ["replicated", "sharded"])
@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(mode: AxisType, row_state: Any) -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(mode,))
    rows = NamedSharding(mesh, P("x", None))
    shardings = None if mode == AxisType.Explicit else {"embed": rows}
    tx = ember_optax.ember(1.0, row_state=row_state, param_shardings=shardings)
    with jax.set_mesh(mesh):
        old, new = ({"embed": jax.device_put(jnp.ones((n, 2)), rows)} for n in (12, 16))
        _, state = tx.update(old, tx.init(old), old)
        out = ember_optax.opt_state_shardings(
            tx, new, {"embed": rows}, row_state=row_state
        )
        resize = jax.jit(
            lambda state: ember_optax.resize_vocab(state, old, new),
            out_shardings=None if mode == AxisType.Explicit else out,
        )
        row, col = tables(resize(state))["embed"]
        expected = P("x") if row_state == "sharded" else P()
        assert row.sharding.is_equivalent_to(NamedSharding(mesh, expected), 1)
        assert col.sharding.is_fully_replicated
        np.testing.assert_allclose(row, np.full(16, 0.001), rtol=1e-6)


# What is refused.


def resize(state: Any, old: Any = None, new: Any = None, **options: Any) -> Any:
    old = make_params() if old is None else old
    return ember_optax.resize_vocab(state, old, old if new is None else new, **options)


def without(name: str) -> Any:
    return {key: x for key, x in make_params().items() if key != name}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"new": without("embed")}, r"'embed', but new_params has no such"),
        ({"old": without("embed")}, r"'embed', but old_params has no such"),
        (
            {"old": make_params(V + 1)},
            r"'embed' has the shape \(41, 6\), but its state",
        ),
        (
            {"new": {**make_params(), "embed": jnp.ones((V, D + 1))}},
            r"'embed' had the shape \(40, 6\) and has \(40, 7\), but only axis 0",
        ),
        (
            {"new": {**make_params(), "mlp": {"kernel": jnp.ones((D, D + 1))}}},
            r"Adam has moments of 'mlp/kernel' with the shape \(6, 6\)",
        ),
        ({"tokens": [0, 1]}, r"int64\[2\], but 'embed' has 40 rows now"),
        ({"tokens": np.zeros(V)}, r"float64\[40\], but 'embed'"),
        ({"tokens": [V] * V}, r"between 40 and 40, but 'embed' had 40 rows"),
        ({"tokens": [-2] * V}, r"between -2 and -2, but 'embed' had 40 rows"),
        (
            {"tokens": {"embd": [0]}},
            r"name 'embd', but the tables of Ember are 'embed',",
        ),
    ],
)
def test_errors(arguments: Any, message: str, state: Any) -> None:
    with pytest.raises(ValueError, match=message):
        resize(state, **arguments)


def test_a_state_without_ember() -> None:
    with pytest.raises(ValueError, match="no EmberState"):
        resize(optax.adamw(1e-2).init(make_params()))
