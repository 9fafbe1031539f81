"""Conversion from Adam to Ember and back: moments against NumPy, steps, errors."""

from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from tests.oracle import Oracle
from tests.unit.common import MAKERS, parts, split, tables
from tests.unit.models import label_roles

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")

SHAPES = {"embed": (12, 5), "lm_head": (5, 12), "ngram_embed": (9, 2, 3)}
STEPS = 7
SCHEDULE = optax.linear_schedule(1e-2, 0.0, 20)


def adamw(b2: float = 0.999) -> optax.GradientTransformation:
    return optax.adamw(SCHEDULE, b2=b2)


def make_tx(kind: str) -> Any:
    return MAKERS[kind](SCHEDULE, 0.999)


def make_params() -> dict[str, Any]:
    tables = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    return {**tables, "mlp": {"kernel": jnp.ones((5, 6))}}


def make_grads(seed: int, like: Any) -> Any:
    """Gradients whose rows and columns differ in size, some rows zero."""
    rng = np.random.default_rng(seed)

    def random(x: jax.Array) -> jax.Array:
        g = rng.normal(size=x.shape) * np.exp(rng.normal(size=x.shape[-1]))
        g[rng.random(x.shape[0]) < 0.3] = 0
        return jnp.asarray(g, x.dtype)

    return jax.tree.map(random, like)


def train(tx: Any, params: Any, steps: int = STEPS, state: Any = None) -> Any:
    """Returns parameters and state after some steps."""
    first = 0 if state is None else STEPS
    state = tx.init(params) if state is None else state
    # MultiSteps compiles a branch in every call outside jit.
    update = jax.jit(tx.update) if isinstance(tx, optax.MultiSteps) else tx.update
    for seed in range(first, first + steps):
        updates, state = update(make_grads(seed, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@cache
def adam_run(b2: float = 0.999) -> Any:
    return train(adamw(b2), make_params())


def corrected(state: Any) -> dict[str, Any]:
    """Moments of all tables, corrected for their start at zero."""
    return {
        name: [x / part.bias_correction for x in moments]
        for part in parts(state)
        for name, moments in part.tables.items()
    }


def oracle_of(name: str, **options: Any) -> Oracle:
    oracle = Oracle(np.zeros(SHAPES[name]), **options)
    for seed in range(STEPS):
        oracle.step(np.asarray(make_grads(seed, make_params())[name]))
    return oracle


@pytest.fixture(params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# Moments


def test_equal_b2_gives_the_state_and_the_update_of_ember(kind: str) -> None:
    params, adam_state = adam_run()
    tx = make_tx(kind)
    state = ember_optax.from_adam(adam_state, tx, params, adam_b2=0.999)
    grads = make_grads(STEPS, params)
    updates, _ = tx.update(grads, state, params)
    for name in SHAPES:
        oracle = oracle_of(name)
        np.testing.assert_allclose(tables(state)[name].row, oracle.row, rtol=2e-6)
        np.testing.assert_allclose(tables(state)[name].col, oracle.col, rtol=2e-6)
        oracle.step(np.asarray(grads[name]))
        expected = -1e-2 * (1 - STEPS / 20) * oracle.update
        np.testing.assert_allclose(updates[name], expected, rtol=2e-5, atol=1e-9)
    for part in parts(state):
        assert part.count == STEPS
        np.testing.assert_allclose(part.bias_correction, 1 - 0.999**STEPS, rtol=1e-6)


def test_another_b2_keeps_the_corrected_means(kind: str) -> None:
    params, state = adam_run(0.95)
    state = ember_optax.from_adam(state, make_tx(kind), params, adam_b2=0.95)
    for name, (row, col) in tables(state).items():
        nu = np.zeros(SHAPES[name])
        for seed in range(STEPS):
            grad = np.asarray(make_grads(seed, make_params())[name], np.float64)
            nu = 0.95 * nu + 0.05 * grad**2
        nu = np.moveaxis(nu, int(np.argmax(SHAPES[name])), 0) / (1 - 0.95**STEPS)
        now = parts(state)[0].bias_correction
        columns = tuple(range(1, nu.ndim))
        np.testing.assert_allclose(row / now, nu.mean(columns), rtol=2e-6)
        np.testing.assert_allclose(col / now, nu.mean(0), rtol=2e-6)


def test_to_adam_keeps_the_corrected_moment_and_from_adam_restores_the_state(
    kind: str,
) -> None:
    tx = make_tx(kind)
    params, state = train(tx, make_params())
    adam_state = ember_optax.to_adam(state, adamw(0.95), params, adam_b2=0.95)
    (adam,) = parts(adam_state, optax.ScaleByAdamState)
    assert adam.count == STEPS
    for name in SHAPES:
        oracle = oracle_of(name)
        vhat = np.multiply.outer(oracle.row, oracle.col) / oracle.col.mean()
        vhat = np.moveaxis(vhat, 0, int(np.argmax(SHAPES[name])))
        np.testing.assert_allclose(
            adam.nu[name] / (1 - 0.95**STEPS),
            vhat / (1 - 0.999**STEPS),
            rtol=2e-5,
            atol=1e-12,
        )
        assert not adam.mu[name].any()
    back = ember_optax.from_adam(adam_state, tx, params, adam_b2=0.95)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, state)
    chex.assert_trees_all_close(corrected(back), corrected(state), rtol=3e-6)


def test_schedules_of_b2_are_multiplied_out(kind: str) -> None:
    b2 = ember_optax.adafactor_decay()
    params, state = adam_run()
    state = ember_optax.from_adam(state, make_tx(kind), params, adam_b2=b2)
    expected = 1 - np.prod([1 - (t + 1.0) ** -0.8 for t in range(STEPS)])
    correction = parts(state)[0].bias_correction
    np.testing.assert_allclose(correction, expected, rtol=1e-6)


def test_a_state_before_the_first_step_is_that_of_init(kind: str) -> None:
    params, tx = make_params(), make_tx(kind)
    state = ember_optax.from_adam(adamw().init(params), tx, params, adam_b2=0.9)
    chex.assert_trees_all_equal(state, tx.init(params))
    back = ember_optax.to_adam(state, adamw(), params, adam_b2=0.9)
    chex.assert_trees_all_equal(back, adamw().init(params))


def test_tables_that_ember_already_trains_keep_their_moments() -> None:
    """Ember trained the embedding with another b2 before it gets the head too."""
    labels = partial(label_roles, exclude="lm_head")
    mixed = split(lambda: ember_optax.ember(1e-2, 0.99), adamw(), labels)
    params, state = train(mixed, make_params())
    tx = make_tx("with_ember")
    moved = ember_optax.from_adam(state, tx, params, adam_b2=0.999)
    before = tables(state)["embed"]
    chex.assert_trees_all_equal(tables(moved)["embed"], before)
    np.testing.assert_allclose(
        tables(moved)["lm_head"].row / moved.ember.bias_correction,
        oracle_of("lm_head").row / (1 - 0.999**STEPS),
        rtol=2e-6,
    )


def test_embers_with_different_b2_become_one() -> None:
    groups = {
        "embed": ember_optax.ember(1e-2, 0.9),
        "head": ember_optax.ember(1e-2, 0.99),
        "body": adamw(),
    }
    old = optax.multi_transform(groups, label_roles)
    params, state = train(old, make_params())
    adam_state = ember_optax.to_adam(state, adamw(), params, adam_b2=0.999)
    again = ember_optax.to_adam(
        ember_optax.from_adam(adam_state, old, params, adam_b2=0.999),
        adamw(),
        params,
        adam_b2=0.999,
    )
    chex.assert_trees_all_close(again, adam_state, rtol=3e-6)
    moved = ember_optax.from_adam(
        ember_optax.to_adam(state, split(adamw, adamw()), params, adam_b2=0.9),
        make_tx("with_ember"),
        params,
        adam_b2=0.9,
    )
    for name, b2 in (("embed", 0.9), ("lm_head", 0.99)):
        np.testing.assert_allclose(
            tables(moved)[name].row / moved.ember.bias_correction,
            oracle_of(name, b2=b2).row / (1 - b2**STEPS),
            rtol=1e-5,
        )


# The body


def chains(wrapper: str, kind: str) -> tuple[Any, Any]:
    """The same optimizer with Adam and with Ember on its tables."""
    adam = partial(optax.adamw, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
    inject = optax.inject_hyperparams if wrapper == "inject" else lambda make: make
    body, old = inject(adam)(SCHEDULE), inject(adam)(SCHEDULE)
    if kind == "multi_transform":
        table = inject(ember_optax.ember)
        new = split(lambda: table(learning_rate=SCHEDULE), body)
    else:
        rates = dict.fromkeys(("embed_learning_rate", "head_learning_rate"), SCHEDULE)
        if wrapper == "inject":
            static = ("body", "vocab_size", "labels", "vocab_axis", "b2")
            make = optax.inject_hyperparams(ember_optax.with_ember, static_args=static)
        else:
            make = ember_optax.with_ember
        new = make(body, **rates)
    if wrapper == "clipped":
        clip = optax.clip_by_global_norm(1.0)
        old = optax.named_chain(("clip", clip), ("adamw", old))
        new = optax.chain(clip, new)
    if wrapper == "groups":
        old = split(lambda: adam(SCHEDULE), body)
    if wrapper == "MultiSteps":
        old, new = (optax.MultiSteps(tx, 2) for tx in (old, new))
    if wrapper == "masked":
        mask = lambda params: jax.tree.map(lambda _: True, params)  # noqa: E731
        old, new = (optax.masked(tx, mask) for tx in (old, new))
    if wrapper == "frozen":
        label = lambda params: dict.fromkeys(params, "train")  # noqa: E731
        groups = [{"train": tx, "frozen": optax.set_to_zero()} for tx in (old, new)]
        old, new = (optax.multi_transform(group, label) for group in groups)
    return old, new


def body_arrays(state: Any) -> list[jax.Array]:
    found = optax.tree.get_all_with_path(state, "mlp")
    return jax.tree.leaves([value for _, value in found])


@pytest.mark.parametrize(
    ("wrapper", "kind"),
    [
        ("clipped", "with_ember"),
        ("MultiSteps", "with_ember"),
        ("frozen", "with_ember"),
        ("groups", "multi_transform"),
        ("masked", "multi_transform"),
        ("inject", "with_ember"),
        ("inject", "multi_transform"),
    ],
)
def test_the_body_continues_unchanged_there_and_back(wrapper: str, kind: str) -> None:
    old, new = chains(wrapper, kind)
    move = partial(ember_optax.from_adam, adam_b2=0.999)
    back = partial(ember_optax.to_adam, adam_b2=0.999)
    params, state = train(old, make_params())
    switched = move(state, new, params)
    returned = back(switched, old, params)
    expected, _ = train(old, params, 3, state)
    steps = STEPS // 2 if wrapper == "MultiSteps" else STEPS
    for tx, converted in ((new, switched), (old, returned)):
        chex.assert_trees_all_equal_structs(converted, tx.init(params))
        chex.assert_trees_all_equal(body_arrays(converted), body_arrays(state))
        counts = optax.tree.get_all_with_path(converted, "count")
        assert {int(count) for _, count in counts} == {steps}
        found, _ = train(tx, params, 3, converted)
        chex.assert_trees_all_close(found["mlp"], expected["mlp"], rtol=1e-6)
        assert not (found["embed"] == expected["embed"]).all()
    # Donation fails for a state that contains an array twice.
    jax.jit(lambda state: state, donate_argnums=0)(switched)


def test_schedules_continue_at_their_own_step_or_at_that_of_adam(kind: str) -> None:
    params, (adam, decay, schedule) = adam_run()
    for state, step in (
        ((adam, decay, schedule._replace(count=jnp.int32(3))), 3),
        ((adam, decay, optax.EmptyState()), STEPS),
    ):
        state = ember_optax.from_adam(state, make_tx(kind), params, adam_b2=0.999)
        assert all(part.count == STEPS for part in parts(state))
        schedules = parts(state, optax.ScaleByScheduleState)
        assert {int(part.count) for part in schedules} == {step}


# Errors


def chained_twice() -> Any:
    return optax.chain(optax.adamw(1e-2), optax.scale_by_adam()).init(make_params())


def another_model() -> Any:
    return adamw().init({**make_params(), "bigram_embed": jnp.ones((4, 3))})


def another_width() -> Any:
    return adamw().init({**make_params(), "embed": jnp.ones((12, 6))})


def another_body() -> Any:
    return adamw().init({**make_params(), "mlp": {"kernel": jnp.ones((5, 7))}})


def differing_steps() -> Any:
    old = optax.chain(optax.clip(1.0), split(adamw, adamw()))
    state = old.init(make_params())
    counts = iter(range(10))

    def count(part: Any) -> Any:
        if not isinstance(part, optax.ScaleByScheduleState):
            return part
        return part._replace(count=jnp.int32(next(counts)))

    is_leaf = lambda x: isinstance(x, optax.ScaleByScheduleState)  # noqa: E731
    return jax.tree.map(count, state, is_leaf=is_leaf)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda: {"a": {"mu": 1.0}}, "has no ScaleByAdamState.* Restore"),
        (chained_twice, "'embed'.* twice"),
        (another_model, "only the given state has 'bigram_embed' and only tx has none"),
        (
            lambda: adamw().init({"embed": jnp.ones(SHAPES["embed"])}),
            "state has none and only tx has 'lm_head', 'mlp/kernel', 'ngram_embed'",
        ),
        (another_width, r"'embed' has the shape \(12, 6\), but its state"),
        (another_body, r"'mlp/kernel' with the shape \(5, 7\), but tx expects"),
        (differing_steps, r"steps differ .*\(0 for .*, 1 for "),
    ],
)
def test_states_that_do_not_fit(case: Any, message: str) -> None:
    tx = make_tx("with_ember")
    with pytest.raises(ValueError, match=message):
        ember_optax.from_adam(case(), tx, make_params(), adam_b2=0.9)


def test_wrong_direction_and_decay() -> None:
    params, tx = make_params(), make_tx("with_ember")
    state = adamw().init(params)
    with pytest.raises(ValueError, match="given state has no EmberState"):
        ember_optax.to_adam(state, adamw(), params, adam_b2=0.9)
    with pytest.raises(ValueError, match="state of tx has no EmberState"):
        ember_optax.from_adam(state, adamw(), params, adam_b2=0.9)
    with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\), got 1\.0"):
        ember_optax.from_adam(state, tx, params, adam_b2=1.0)
