"""One table for embedding and head, and from the middle of a run two."""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from ember_optax import EmberState
from tests.oracle import Oracle
from tests.unit.common import (
    MAKERS,
    RATE,
    NnxModel,
    Tables,
    as_pure,
    boxed,
    groups,
    tables,
    with_ember,
)

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")

V, D = 12, 4
MLP = {"kernel": np.ones((D, D), np.float32)}
B2 = {"constant": 0.99, "schedule": ember_optax.adafactor_decay()}


def schedule(peak: float) -> optax.Schedule:
    return optax.linear_schedule(peak, 0.0, 20)


def table(seed: int, shape: tuple[int, ...] = (V, D)) -> np.ndarray:
    """A table, or its gradient, with rows of different size and one of zeros."""
    rng = np.random.default_rng(seed)
    size = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (rng.normal(size=shape) * size).astype(np.float32)


def tied(seed: int) -> Any:
    return {"embed": jnp.asarray(table(seed)), "mlp": MLP}


def untied(seed: int) -> Any:
    """The same table for each role, that of the head transposed."""
    return {**tied(seed), "lm_head": jnp.asarray(table(seed).T)}


def train(tx: Any, params: Any, grads: list[Any], state: Any = None) -> Any:
    state = tx.init(params) if state is None else state
    updates = params
    for grad in grads:
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return updates, state, params


@pytest.mark.parametrize(
    ("make", "b2"), [("multi_transform", "constant"), ("with_ember", "schedule")]
)
def test_next_steps_are_those_of_the_tied_table(make: str, b2: str) -> None:
    """The oracle continues with one table; rates follow a schedule."""
    tx = MAKERS[make](schedule(RATE), B2[b2])
    oracle = Oracle(table(0), b2=B2[b2])
    _, state, params = train(tx, tied(0), [tied(i) for i in range(1, 4)])
    for i in range(1, 4):
        oracle.learning_rate = RATE * (1 - (i - 1) / 20)
        oracle.step(table(i))
    params["lm_head"] = params["embed"].T
    state = jax.jit(
        lambda state: ember_optax.untie(state, tx, params, {"lm_head": "embed"})
    )(state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))
    for i in range(4, 7):
        updates, state, params = train(tx, params, [untied(i)], state)
        oracle.learning_rate = RATE * (1 - (i - 1) / 20)
        oracle.step(table(i))
        expected = -oracle.learning_rate * oracle.update
        np.testing.assert_allclose(updates["embed"], expected, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(updates["lm_head"], expected.T, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(params["embed"], oracle.theta, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(params["lm_head"].T, params["embed"], rtol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_the_body_is_kept_bitwise(make: str) -> None:
    tx = MAKERS[make](schedule(RATE))
    _, before, _ = train(tx, tied(0), [tied(1), tied(2)])
    after = ember_optax.untie(before, tx, untied(0), {"lm_head": "embed"})

    def everything_else(state: Any) -> list[Any]:
        leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, EmberState))
        return [x for x in leaves if not isinstance(x, EmberState)]

    chex.assert_trees_all_equal(everything_else(before), everything_else(after))
    steps, _, _ = train(tx, tied(0), [tied(3)], before)
    new_steps, _, _ = train(tx, untied(0), [untied(3)], after)
    chex.assert_trees_all_equal(steps, {k: new_steps[k] for k in steps})


def test_a_new_group_continues_at_the_step_of_the_tied_table() -> None:
    """The tied run had one group for tables; its count and schedule go to both."""
    label = partial(ember_optax.label_token_tables, table="table")
    rate = schedule(RATE)
    one = {"table": ember_optax.ember(rate, 0.99), "body": optax.adamw(RATE)}
    old, new = optax.multi_transform(one, label), groups(rate)
    _, state, params = train(old, tied(0), [tied(1), tied(2)])
    expected, _, _ = train(old, params, [tied(3)], state)
    params["lm_head"] = params["embed"].T
    state = ember_optax.untie(state, new, params, {"lm_head": "embed"})
    updates, _, _ = train(new, params, [untied(3)], state)
    for x in (updates["embed"], updates["lm_head"].T):
        np.testing.assert_allclose(x, expected["embed"], rtol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_accumulated_gradients_are_copied(make: str) -> None:
    """Untied between two of three gradients; the state can be donated."""
    tx = optax.MultiSteps(MAKERS[make](), 3)
    grads = [tied(i) for i in range(1, 6)]
    _, state, params = train(tx, tied(0), grads)
    expected, _, _ = train(tx, params, [tied(6)], state)
    params["lm_head"] = params["embed"].T
    state = ember_optax.untie(state, tx, params, {"lm_head": "embed"})
    assert state.mini_step == 2
    update = jax.jit(tx.update, donate_argnums=1)
    updates, state = update(untied(6), state, params)
    for x in (updates["embed"], updates["lm_head"].T):
        np.testing.assert_allclose(x, expected["embed"], rtol=1e-5)
    assert state.gradient_step == 2


def test_hyperparameters_are_kept() -> None:
    static = ("body", "labels", "vocab_size", "vocab_axis")
    tx = optax.inject_hyperparams(ember_optax.with_ember, static_args=static)(
        optax.adamw(RATE), embed_learning_rate=RATE, head_learning_rate=RATE
    )
    state = optax.tree.set(tx.init(tied(0)), embed_learning_rate=jnp.float32(0.5))
    state = ember_optax.untie(state, tx, untied(0), {"lm_head": "embed"})
    assert state.hyperparams["embed_learning_rate"] == 0.5


def test_rates_follow_the_roles() -> None:
    """The tied table is a head; untied, the input table has a rate of its own."""
    tx = ember_optax.with_ember(
        optax.sgd(1.0), embed_learning_rate=20.0, head_learning_rate=1.0, b2=0.99
    )
    _, state, params = train(tx, tied(0), [tied(1)])
    before, _, _ = train(tx, params, [tied(2)], state)
    state = ember_optax.untie(state, tx, untied(0), {"lm_head": "embed"})
    after, _, _ = train(tx, untied(0), [untied(2)], state)
    np.testing.assert_allclose(after["embed"], 20 * before["embed"], rtol=1e-6)
    np.testing.assert_allclose(after["lm_head"].T, before["embed"], rtol=1e-6)


# Containers, shapes and meshes


@pytest.mark.parametrize(
    "make",
    [
        lambda i, both: boxed(untied(i) if both else tied(i)),
        lambda i, both: nn.FrozenDict(untied(i) if both else tied(i)),
        lambda i, both: Tables(*[table(i), table(i).T][: 1 + both]),
    ],
    ids=["linen boxes", "FrozenDict", "named tuple"],
)
def test_containers(make: Callable[[int, bool], Any]) -> None:
    """Untied between two accumulated gradients, after the first step."""
    tx = optax.MultiSteps(with_ember(), 2)
    _, state, _ = train(tx, make(0, False), [make(i, False) for i in (1, 2, 3)])
    state = ember_optax.untie(state, tx, make(0, True), {"lm_head": "embed"})
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(make(0, True)))
    updates, _, _ = train(tx, make(0, True), [make(4, True)], state)
    embed, head = (x for x in jax.tree.leaves(updates) if x.shape != (D, D))
    np.testing.assert_allclose(embed, head.T, rtol=1e-6)
    assert np.any(embed)


def test_nnx_optimizer() -> None:
    tx = with_ember()
    old, new = NnxModel(V, D), NnxModel(V, D, is_tied=False)
    optimizer = nnx.Optimizer(old, tx, wrt=nnx.Param)
    optimizer.update(old, jax.tree.map(jnp.ones_like, nnx.state(old, nnx.Param)))
    params, opt_state = as_pure((nnx.state(new, nnx.Param), optimizer.opt_state))
    paths = {"lm_head/kernel": "embed/embedding"}
    state = ember_optax.untie(opt_state, tx, params, paths)
    optimizer = nnx.Optimizer(new, tx, wrt=nnx.Param)
    nnx.update(optimizer.opt_state, nnx.state(state))
    found = tables(as_pure(optimizer.opt_state))
    np.testing.assert_allclose(found["lm_head:kernel"].row, np.full(V, 0.01), rtol=1e-6)
    optimizer.update(new, jax.tree.map(jnp.ones_like, nnx.state(new, nnx.Param)))


def test_a_table_that_only_the_tied_run_has() -> None:
    tx = optax.MultiSteps(with_ember(), 2)
    old = {"shared": jnp.asarray(table(0))}
    new = {"embed": old["shared"], "lm_head": old["shared"]}
    grads = [jax.tree.map(lambda x, i=i: jnp.asarray(table(i)), old) for i in (1, 2, 3)]
    _, state, _ = train(tx, old, grads)
    paths = dict.fromkeys(new, "shared")
    state = ember_optax.untie(state, tx, new, paths)
    for path in new:
        gradient = state.acc_grads[path]
        np.testing.assert_array_equal(gradient, table(3))
    # No array is in the state twice.
    jax.jit(tx.update, donate_argnums=1)(new, state, new)


def test_per_head_tables() -> None:
    """[V, H, K] to [H, K, V]: columns of more than one axis, and accumulated ones."""
    old = {"embed": jnp.asarray(table(0, (V, 2, 3)))}
    new = {**old, "lm_head": jnp.moveaxis(old["embed"], 0, 2)}
    tx = optax.MultiSteps(with_ember(), 3)
    _, state, _ = train(tx, old, [old] * 4)
    state = ember_optax.untie(state, tx, new, {"lm_head": "embed"})
    gradient = jnp.moveaxis(state.acc_grads["lm_head"], 2, 0)
    np.testing.assert_array_equal(gradient, old["embed"])
    chex.assert_trees_all_equal(*tables(state).values())


def test_square_tables_need_the_axis_of_their_tokens() -> None:
    old = {"embed": jnp.asarray(table(0, (D, D)))}
    new = {**old, "lm_head": old["embed"].T}
    axes = {"embed": 0, "lm_head": 1}
    tied_tx = ember_optax.ember(RATE, vocab_axis={"embed": 0})
    tx = ember_optax.ember(RATE, vocab_axis=axes)
    _, state, _ = train(tied_tx, old, [old])
    with pytest.raises(ValueError, match=r"'lm_head'.*pass vocab_axis"):
        ember_optax.untie(state, tx, new, {"lm_head": "embed"})
    state = ember_optax.untie(state, tx, new, {"lm_head": "embed"}, vocab_axis=axes)
    updates, _, _ = train(tx, new, [new], state)
    np.testing.assert_allclose(updates["lm_head"].T, updates["embed"], rtol=1e-6)


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(mode: AxisType) -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(mode,))
    rows, cols = (NamedSharding(mesh, P(*axes)) for axes in (("x", None), (None, "x")))
    explicit = mode == AxisType.Explicit
    tx = optax.MultiSteps(with_ember(), 2)
    with jax.set_mesh(mesh):
        old = {"embed": jax.device_put(jnp.asarray(table(0)), rows)}
        new = {**old, "lm_head": jax.device_put(jnp.asarray(table(0).T), cols)}
        state = tx.init(old)
        for _ in range(3):
            _, state = jax.jit(tx.update)(old, state, old)
        shardings = {"embed": rows, "lm_head": cols}
        out = ember_optax.opt_state_shardings(tx, new, shardings)
        state = jax.jit(
            lambda s: ember_optax.untie(s, tx, new, {"lm_head": "embed"}),
            out_shardings=None if explicit else out,
        )(state)
        assert state.acc_grads["lm_head"].sharding.is_equivalent_to(cols, 2)
        for found in jax.tree.leaves(tables(state)):
            assert found.sharding.is_fully_replicated
        updates, _ = jax.jit(tx.update)(new, state, new)
        difference = np.asarray(updates["embed"]) - np.asarray(updates["lm_head"]).T
        np.testing.assert_allclose(difference, 0, atol=1e-6)


# Errors


def test_other_state_of_the_tied_table_is_refused() -> None:
    tx = optax.contrib.schedule_free(with_ember(), 1e-2)
    _, state, _ = train(tx, tied(0), [tied(1)])
    message = r"ScheduleFreeState\.z of 'embed' with the shape"
    with pytest.raises(ValueError, match=message):
        ember_optax.untie(state, tx, untied(0), {"lm_head": "embed"})


@pytest.mark.parametrize(
    ("tables", "params", "message"),
    [
        (
            {"lm_head": "embd"},
            untied(0),
            r"trains 'lm_head', but .* of 'embed': tables",
        ),
        ({}, untied(0), r"trains 'lm_head', but the state has the moments of 'embed'"),
        ({"head": "embed"}, untied(0), r"tables has 'head', but .* 'embed', 'lm_head'"),
        ({"lm_head": "embed"}, tied(0), r"tables has 'lm_head', but .* trains 'embed'"),
        (
            {"lm_head": "embed"},
            {**tied(0), "lm_head": jnp.ones((D + 1, V))},
            r"'lm_head' has the shape \(5, 12\), but its state",
        ),
        (
            {"lm_head": "embed"},
            {"embed": jnp.ones((V, D + 1)), "lm_head": jnp.ones((V, D)), "mlp": MLP},
            r"moments of 'embed' with the shape",
        ),
    ],
)
def test_errors(tables: Any, params: Any, message: str) -> None:
    tx = with_ember()
    state = tx.init(tied(0))
    with pytest.raises(ValueError, match=message):
        ember_optax.untie(state, tx, params, tables)


def test_moments_that_would_be_lost_are_refused() -> None:
    tx = ember_optax.ember(RATE)
    state = tx.init({"embed": table(0), "bigram_embed": table(0)})
    new = {"embed": table(0), "lm_head": table(0)}
    with pytest.raises(ValueError, match="moments of 'bigram_embed', but the Ember in"):
        ember_optax.untie(state, tx, new, {"lm_head": "embed"})


def test_a_state_without_ember() -> None:
    state = optax.adamw(RATE).init(tied(0))
    with pytest.raises(ValueError, match="has the moments of no table"):
        ember_optax.untie(state, with_ember(), untied(0), {"lm_head": "embed"})
