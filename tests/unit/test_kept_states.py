"""States that are not Ember's alone: nothing in them is lost in silence."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")

PARAMS = {"embed": jnp.ones((12, 4)), "mlp": {"kernel": jnp.ones((4, 4))}}
BIGGER = {**PARAMS, "embed": jnp.ones((15, 4))}
LABELS = ember_optax.label_token_tables


class Counted(NamedTuple):
    """A user's own state."""

    count: jax.Array


class Tables(NamedTuple):
    """Parameters in a user's own container."""

    embed: jax.Array
    head: jax.Array


def routed(table: Any, body: Any = None) -> Any:
    body = optax.adamw(1e-2) if body is None else body
    return optax.multi_transform({"table": table, "body": body}, LABELS)


def train(tx: Any, steps: int = 2, params: Any = PARAMS, state: Any = None) -> Any:
    """Returns the state after some steps on different gradients."""
    rng = np.random.default_rng(0 if state is None else 1)
    state = tx.init(params) if state is None else state
    for _ in range(steps):
        grads = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), params)
        _, state = tx.update(grads, state, params)
    return state


def get(state: Any, name: str) -> list[Any]:
    return [value for _, value in optax.tree.get_all_with_path(state, name)]


def switch(wrap: Any, body: Any = None) -> tuple[Any, Any]:
    """Returns a state with Adam on the table, and that with Ember."""
    old = wrap(routed(optax.adam(1e-2), body))
    new = wrap(routed(ember_optax.ember(1e-2), body))
    state = train(old)
    return state, ember_optax.from_adam(state, new, PARAMS)


# From Adam to Ember


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (optax.sgd(1e-2, momentum=0.9), "trace"),
        (optax.contrib.muon(1e-2), "mu"),
        (optax.lion(1e-2), "mu"),
        (optax.adafactor(1e-2), "v"),
        (optax.rmsprop(1e-2), "nu"),
        (optax.chain(optax.ema(0.9), optax.adamw(1e-2)), "ema"),
    ],
)
def test_the_body_keeps_its_state_to_the_bit(body: Any, name: str) -> None:
    old, new = switch(lambda tx: tx, body)
    chex.assert_trees_all_equal(new.inner_states["body"], old.inner_states["body"])
    kept = get(new.inner_states["body"], name)
    assert any(np.any(np.asarray(x)) for x in jax.tree.leaves(kept))


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
        (lambda tx: optax.chain(optax.ema(0.9), tx), ["ema"]),
        (lambda tx: optax.chain(tx, optax.trace(0.9)), ["trace"]),
    ],
    ids=["MultiSteps", "conditionally", "schedule_free", "finite", "ema", "trace"],
)
def test_what_both_optimizers_have_is_kept_to_the_bit(wrap: Any, names: Any) -> None:
    old, new = switch(wrap)
    for name in names:
        assert get(old, name)
        chex.assert_trees_all_equal(get(new, name), get(old, name))


def test_a_users_state_with_a_count_is_no_schedule() -> None:
    def counting() -> optax.GradientTransformation:
        return optax.GradientTransformation(
            lambda params: Counted(jnp.int32(40)),
            lambda updates, state, params=None: (updates, Counted(state.count + 2)),
        )

    old = optax.chain(counting(), routed(optax.adam(1e-2)))
    new = optax.chain(counting(), routed(ember_optax.ember(1e-2)))
    switched = ember_optax.from_adam(train(old), new, PARAMS)
    assert switched[0].count == 44


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            lambda tx: optax.MultiSteps(tx, 3),
            lambda tx: tx,
            r"MultiStepsState\.\w+.* would be lost",
        ),
        (
            lambda tx: optax.chain(optax.trace(0.9), tx),
            lambda tx: tx,
            r"TraceState\.trace of 'embed'.* would be lost",
        ),
        (
            lambda tx: optax.contrib.schedule_free(tx, 1e-2),
            lambda tx: tx,
            r"ScheduleFreeState\.\w+.* would be lost",
        ),
    ],
)
def test_what_would_be_lost_is_refused(old: Any, new: Any, message: str) -> None:
    state = train(old(routed(optax.adam(1e-2))))
    tx = new(routed(ember_optax.ember(1e-2)))
    with pytest.raises(ValueError, match=message):
        ember_optax.from_adam(state, tx, PARAMS)


def test_a_new_transformation_starts_anew() -> None:
    state = train(routed(optax.adam(1e-2)))
    new = optax.MultiSteps(routed(ember_optax.ember(1e-2)), 3)
    switched = ember_optax.from_adam(state, new, PARAMS)
    assert switched.mini_step == 0


def test_parameters_in_named_tuples_of_the_user() -> None:
    params = Tables(embed=jnp.ones((12, 4)), head=jnp.ones((4, 12)))
    adam, tx = optax.adam(1e-2), ember_optax.ember(1e-2)
    old = train(adam, params=params)
    new = ember_optax.from_adam(old, tx, params)
    nu = np.asarray(old[0].nu.embed)
    np.testing.assert_allclose(new[0].tables["embed"].row, nu.mean(1), rtol=1e-6)


# Another vocabulary


def test_accumulated_gradients_follow_the_vocabulary() -> None:
    tx = optax.MultiSteps(routed(ember_optax.ember(1e-2)), 3)
    state = train(tx)
    assert state.mini_step == 2
    resized = ember_optax.resize_vocab(state, PARAMS, BIGGER)
    chex.assert_trees_all_equal_shapes_and_dtypes(resized, tx.init(BIGGER))
    np.testing.assert_array_equal(
        resized.acc_grads["embed"],
        np.pad(state.acc_grads["embed"], ((0, 3), (0, 0))),
    )
    train(tx, 2, BIGGER, resized)


def test_accumulated_gradients_follow_their_tokens() -> None:
    tx = optax.MultiSteps(routed(ember_optax.ember(1e-2)), 3)
    state = train(tx)
    order = np.arange(12)[::-1]
    resized = ember_optax.resize_vocab(state, PARAMS, PARAMS, tokens=order)
    np.testing.assert_array_equal(
        resized.acc_grads["embed"], state.acc_grads["embed"][::-1]
    )


WRAPPERS = {
    "EmaState.ema": lambda tx: optax.chain(optax.ema(0.9), tx),
    "ScheduleFreeState.z": lambda tx: optax.contrib.schedule_free(tx, 1e-2),
    "TraceState.trace": lambda tx: optax.chain(tx, optax.trace(0.9)),
    "FactoredState.v": lambda tx: optax.chain(optax.scale_by_factored_rms(), tx),
    "ScaleBySM3State.mu": lambda tx: optax.chain(optax.scale_by_sm3(), tx),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("tokens", [None, np.arange(12)[::-1]], ids=["grow", "move"])
def test_other_state_of_a_table_that_changes_is_refused(name: str, tokens: Any) -> None:
    tx = WRAPPERS[name](routed(ember_optax.ember(1e-2)))
    new = BIGGER if tokens is None else PARAMS
    with pytest.raises(ValueError, match=rf"{name}\w* of 'embed'"):
        ember_optax.resize_vocab(train(tx), PARAMS, new, tokens=tokens)


@pytest.mark.parametrize("name", WRAPPERS)
def test_other_state_of_a_table_that_does_not_change_stays(name: str) -> None:
    tx = WRAPPERS[name](routed(ember_optax.ember(1e-2)))
    state = train(tx)
    resized = ember_optax.resize_vocab(state, PARAMS, PARAMS)
    chex.assert_trees_all_close(resized, state, rtol=1e-6)
