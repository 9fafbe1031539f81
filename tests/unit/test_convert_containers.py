"""Conversion in containers and on meshes, and the states of other transformations."""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import freeze
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from tests.unit.common import MAKERS, NnxModel, Tables, as_pure, boxed, parts, tables
from tests.unit.test_convert import STEPS, adam_run, adamw, make_grads, make_tx, train

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")

from_adam = partial(ember_optax.from_adam, adam_b2=0.999)
to_adam = partial(ember_optax.to_adam, adam_b2=0.999)


# Containers and dtypes


def plain() -> Any:
    return {"embed": jnp.ones((12, 5)), "mlp": {"kernel": jnp.ones((5, 6))}}


@pytest.mark.parametrize(
    "make",
    [
        lambda: boxed(plain()),
        lambda: freeze(plain()),
        lambda: Tables(jnp.ones((12, 5)), jnp.ones((5, 12))),
    ],
    ids=["linen boxes", "FrozenDict", "named tuple"],
)
def test_containers(make: Any) -> None:
    params, tx = make(), make_tx("with_ember")
    _, old = train(adamw(), params)
    state = from_adam(old, tx, params)
    chex.assert_trees_all_equal_structs(state, tx.init(params))
    nu = jax.tree.leaves(old[0].nu)[0]
    np.testing.assert_allclose(tables(state)["embed"].row, nu.mean(1), rtol=1e-6)
    chex.assert_trees_all_equal_structs(to_adam(state, adamw(), params), old)
    train(tx, params, 1, state)


def test_nnx_optimizer() -> None:
    model, tx = NnxModel(12, 5), make_tx("with_ember")
    old = nnx.Optimizer(model, adamw(), wrt=nnx.Param)
    for seed in range(STEPS):
        old.update(model, make_grads(seed, nnx.state(model, nnx.Param)))
    new = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params, adam_state = as_pure((nnx.state(model, nnx.Param), old.opt_state))
    nnx.update(new.opt_state, nnx.state(from_adam(adam_state, tx, params)))

    (adam,) = parts(as_pure(old.opt_state), optax.ScaleByAdamState)
    row = tables(as_pure(new.opt_state))["embed:embedding"].row
    nu = np.asarray(adam.nu["embed"]["embedding"])
    np.testing.assert_allclose(row, nu.mean(1), rtol=1e-6)
    new.update(model, make_grads(STEPS, nnx.state(model, nnx.Param)))
    (ember,) = parts(as_pure(new.opt_state))
    assert ember.count == STEPS + 1


def test_dtypes() -> None:
    """bfloat16 moments are averaged in float32; others get the dtype that tx has."""
    params = {"embed": jnp.ones((512, 4), "bfloat16"), "mlp": jnp.ones((2, 2))}
    body = optax.adamw(1e-2, mu_dtype="bfloat16")
    tx = ember_optax.with_ember(body, head_learning_rate=1e-2)
    adam = optax.adamw(1e-2)
    nu = jnp.arange(512 * 4).reshape(512, 4).astype("bfloat16")
    state = adam.init(params)
    nus = {**state[0].nu, "embed": nu}
    old = (state[0]._replace(nu=nus, count=jnp.int32(5)), *state[1:])
    converted = from_adam(old, tx, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(converted, tx.init(params))
    row, col = tables(converted)["embed"]
    np.testing.assert_allclose(row, np.asarray(nu, np.float64).mean(1), rtol=1e-6)
    np.testing.assert_allclose(col, np.asarray(nu, np.float64).mean(0), rtol=1e-6)
    back = to_adam(converted, adam, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, state)


@pytest.mark.parametrize("kind", MAKERS)
def test_under_jit_and_eval_shape(kind: str) -> None:
    params, adam_state = adam_run()
    tx = make_tx(kind)
    move = partial(from_adam, tx=tx, params=params)
    chex.assert_trees_all_close(jax.jit(move)(adam_state), move(adam_state), rtol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(move, adam_state), tx.init(params)
    )


# Meshes


SPECS = {"embed": P("x", "y"), "lm_head": P("y", "x"), "mlp": {"kernel": P(None, "y")}}


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(mode: AxisType) -> None:
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(mode,) * 2)
    params = {
        "embed": jnp.ones((12, 4)),
        "lm_head": jnp.ones((4, 12)),
        "mlp": {"kernel": jnp.ones((4, 6))},
    }
    _, here = train(adamw(), params)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    explicit = mode == AxisType.Explicit
    tx = ember_optax.with_ember(
        adamw(),
        embed_learning_rate=1e-2,
        head_learning_rate=1e-2,
        param_shardings=None if explicit else shardings,
    )
    expected = from_adam(here, tx, params)
    expected_back = to_adam(expected, adamw(), params)
    there = ember_optax.opt_state_shardings(tx, params, shardings)
    back_there = ember_optax.opt_state_shardings(adamw(), params, shardings)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, shardings)
        adam_state = jax.device_put(here, back_there)
        move = jax.jit(
            lambda state, params: from_adam(state, tx, params),
            out_shardings=None if explicit else there,
        )
        state = move(adam_state, params)
        assert specs(state) == specs(jax.device_put(state, there))
        chex.assert_trees_all_close(jax.device_get(state), expected, rtol=1e-6)

        move_back = jax.jit(
            lambda state, params: to_adam(state, adamw(), params),
            out_shardings=None if explicit else back_there,
        )
        back = move_back(state, params)
        assert specs(back) == specs(adam_state)
        chex.assert_trees_all_close(jax.device_get(back), expected_back, rtol=1e-5)

        # Outside of jit the statistics are replicated over all devices.
        for x in jax.tree.leaves(from_adam(adam_state, tx, params).ember.tables):
            assert x.sharding.is_fully_replicated
            assert len(x.sharding.device_set) == 4


def specs(tree: Any) -> list[Any]:
    """Specs of all arrays in one notation."""
    return [
        (x.sharding.mesh.axis_names, P(*(*x.sharding.spec, *[None] * x.ndim)[: x.ndim]))
        for x in jax.tree.leaves(tree)
    ]


# States of other transformations

PARAMS = plain()


class Counted(NamedTuple):
    """A user's own state. Its count is not the step of a schedule."""

    count: jax.Array


def counting() -> optax.GradientTransformation:
    return optax.GradientTransformation(
        lambda params: Counted(jnp.int32(40)),
        lambda updates, state, params=None: (updates, Counted(state.count + 2)),
    )


def pair(body: Any = None, wrap: Any = lambda tx: tx) -> Any:
    """A trained state with Adam on the table, and two optimizers with Ember on it."""
    body = optax.adamw(1e-2) if body is None else body
    labels = ember_optax.label_token_tables
    old, new = (
        optax.multi_transform({"table": table, "body": body}, labels)
        for table in (optax.adam(1e-2), ember_optax.ember(1e-2))
    )
    front = ember_optax.with_ember(body, head_learning_rate=1e-2)
    return train(wrap(old), PARAMS, 2)[1], (wrap(new), wrap(front))


def get(state: Any, name: str) -> list[jax.Array]:
    found = optax.tree.get_all_with_path(state, name)
    return jax.tree.leaves([value for _, value in found])


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (optax.sgd(1e-2, momentum=0.9), "trace"),
        (optax.contrib.muon(1e-2), "mu"),
        (optax.adafactor(1e-2), "v"),
        (optax.chain(optax.ema(0.9), optax.adamw(1e-2)), "ema"),
    ],
)
def test_the_body_keeps_its_state_bitwise(body: Any, name: str) -> None:
    old, (split, front) = pair(body)
    before = old.inner_states["body"].inner_state
    assert any(np.any(x) for x in get(before, name))
    after = from_adam(old, split, PARAMS).inner_states["body"].inner_state
    chex.assert_trees_all_equal(after, before)
    chex.assert_trees_all_equal(from_adam(old, front, PARAMS).body, before)


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (
            lambda tx: optax.MultiSteps(tx, 3),
            ["mini_step", "gradient_step", "acc_grads"],
        ),
        (
            lambda tx: optax.conditionally_transform(tx, lambda step, **_: step < 99),
            ["step"],
        ),
        (
            lambda tx: optax.contrib.schedule_free(tx, 1e-2),
            ["z", "weight_sum", "step_count", "max_lr"],
        ),
        (lambda tx: optax.apply_if_finite(tx, 5), ["total_notfinite"]),
        (lambda tx: optax.named_chain(("mine", counting()), ("tx", tx)), ["mine"]),
    ],
    ids=["MultiSteps", "conditional", "schedule_free", "finite", "own"],
)
def test_state_that_both_have_is_kept_bitwise(wrap: Any, names: Any) -> None:
    old, optimizers = pair(wrap=wrap)
    for tx in optimizers:
        new = from_adam(old, tx, PARAMS)
        for name in names:
            assert get(old, name)
            chex.assert_trees_all_equal(get(new, name), get(old, name))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            lambda tx: optax.chain(optax.trace(0.9), tx),
            r"TraceState\.trace of 'embed'",
        ),
        (lambda tx: optax.chain(counting(), tx), r"Counted\.count"),
    ],
)
def test_state_that_would_be_lost_is_refused(wrap: Any, message: str) -> None:
    old, _ = pair(wrap=wrap)
    for tx in pair()[1]:
        with pytest.raises(ValueError, match=rf"{message}.* would be lost"):
            from_adam(old, tx, PARAMS)


def test_a_new_transformation_starts_anew() -> None:
    old, (_, front) = pair()
    switched = from_adam(old, optax.MultiSteps(front, 3), PARAMS)
    assert switched.mini_step == 0


@pytest.mark.parametrize("n_old", [1, 2])
def test_arrays_at_ambiguous_places_are_refused(n_old: int) -> None:
    """Two moving averages where there was one, or the other way round."""
    ema = optax.ema(0.9)
    one, two = (lambda tx: optax.chain(ema, tx)), (lambda tx: optax.chain(ema, ema, tx))
    old, _ = pair(wrap=one if n_old == 1 else two)
    _, (_, front) = pair(wrap=two if n_old == 1 else one)
    message = "does not tell" if n_old == 1 else "would be lost"
    with pytest.raises(ValueError, match=rf"EmaState\.\w+.* {message}"):
        from_adam(old, front, PARAMS)
