"""From Adam to Ember and back: against NumPy, in every container and on meshes."""

from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from ember_optax import EmberState
from tests.oracle import Oracle

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")

SHAPES = {"embed": (12, 5), "lm_head": (5, 12), "ngram_embed": (9, 2, 3)}
STEPS = 7


def adamw(b2: float = 0.999) -> optax.GradientTransformation:
    return optax.adamw(optax.linear_schedule(1e-2, 0.0, 20), b2=b2)


def with_ember(b2: float = 0.999, **options: Any) -> optax.GradientTransformation:
    table = ember_optax.ember(optax.linear_schedule(1e-2, 0.0, 20), b2, **options)
    return optax.multi_transform(
        {"table": table, "body": adamw()}, ember_optax.label_token_tables
    )


def make_params(dtype: Any = "float32") -> dict[str, Any]:
    tables = {name: jnp.ones(shape, dtype) for name, shape in SHAPES.items()}
    return {**tables, "mlp": {"kernel": jnp.ones((5, 6), dtype)}}


def make_grads(seed: int, like: Any) -> Any:
    """Gradients whose rows and columns differ in size, some rows zero."""
    rng = np.random.default_rng(seed)

    def of(x: jax.Array) -> jax.Array:
        g = rng.normal(size=x.shape) * np.exp(rng.normal(size=x.shape[-1]))
        g[rng.random(x.shape[0]) < 0.3] = 0
        return jnp.asarray(g, x.dtype)

    return jax.tree.map(of, like)


def train(tx: Any, params: Any, steps: int = STEPS, state: Any = None) -> Any:
    """Returns parameters and state after so many steps."""
    first = 0 if state is None else STEPS
    state = tx.init(params) if state is None else state
    for seed in range(first, first + steps):
        updates, state = tx.update(make_grads(seed, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@cache
def adam_run(b2: float = 0.999) -> Any:
    return train(adamw(b2), make_params())


@cache
def ember_run(b2: float = 0.999, column_mean: str = "all") -> Any:
    return train(with_ember(b2, column_mean=column_mean), make_params())


def ember_part(state: Any) -> EmberState:
    (part,) = parts(state, EmberState)
    return part


def parts(state: Any, kind: type) -> list[Any]:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def oracle_of(name: str, steps: int = STEPS, **options: Any) -> Oracle:
    oracle = Oracle(np.zeros(SHAPES[name]), **options)
    for seed in range(steps):
        oracle.step(np.asarray(make_grads(seed, make_params())[name]))
    return oracle


def adams_second_moment(name: str, b2: float) -> np.ndarray:
    """Adam's nu after the steps, not corrected for its bias."""
    nu = np.zeros(SHAPES[name])
    for seed in range(STEPS):
        grad = np.asarray(make_grads(seed, make_params())[name], np.float64)
        nu = b2 * nu + (1 - b2) * grad**2
    return nu


# What is exact.


@pytest.mark.parametrize("name", SHAPES)
def test_with_the_same_b2_it_is_the_state_of_ember_from_the_start(name: str) -> None:
    params, adam_state = adam_run(0.99)
    state = ember_optax.from_adam(adam_state, with_ember(0.99), params)
    oracle, part = oracle_of(name, b2=0.99), ember_part(state)
    assert part.count == STEPS
    np.testing.assert_allclose(part.tables[name].row, oracle.row, rtol=2e-6)
    np.testing.assert_allclose(part.tables[name].col, oracle.col, rtol=2e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_with_the_same_b2_the_next_update_is_that_of_ember(name: str) -> None:
    params, adam_state = adam_run()
    tx = with_ember()
    state = ember_optax.from_adam(adam_state, tx, params)
    updates, _ = tx.update(make_grads(STEPS, params), state, params)
    oracle = oracle_of(name, STEPS + 1)
    lr = 1e-2 * (1 - STEPS / 20)
    np.testing.assert_allclose(updates[name], -lr * oracle.update, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("name", SHAPES)
def test_with_another_b2_the_corrected_means_are_equal(name: str) -> None:
    params, adam_state = adam_run(0.95)
    state = ember_optax.from_adam(
        adam_state, with_ember(0.999), params, adam_b2=0.95, ember_b2=0.999
    )
    corrected = adams_second_moment(name, 0.95) / (1 - 0.95**STEPS)
    axis = int(np.argmax(SHAPES[name]))
    columns = tuple(a for a in range(corrected.ndim) if a != axis)
    row, col = ember_part(state).tables[name]
    now = 1 - 0.999**STEPS
    assert ember_part(state).count == STEPS
    np.testing.assert_allclose(row / now, corrected.mean(columns), rtol=2e-6)
    np.testing.assert_allclose(col / now, corrected.mean(axis), rtol=2e-6)


@pytest.mark.parametrize("b2s", [(0.999, 0.999), (0.95, 0.999), (0.999, 0.9)])
@pytest.mark.parametrize("column_mean", ["all", "active"])
@pytest.mark.parametrize("name", SHAPES)
def test_to_adam_keeps_vhat(
    name: str, column_mean: str, b2s: tuple[float, float]
) -> None:
    adam_b2, ember_b2 = b2s
    params, state = ember_run(ember_b2, column_mean)
    adam_state = ember_optax.to_adam(
        state, adamw(adam_b2), params, adam_b2=adam_b2, ember_b2=ember_b2
    )
    (part,) = parts(adam_state, optax.ScaleByAdamState)
    oracle = oracle_of(name, b2=ember_b2, column_mean=column_mean)
    scale = oracle.col.mean() if column_mean == "all" else oracle.row.mean()
    expected = np.multiply.outer(oracle.row, oracle.col) / scale
    expected = np.moveaxis(expected, 0, int(np.argmax(SHAPES[name])))
    expected = expected / (1 - ember_b2**STEPS)
    assert part.count == STEPS
    np.testing.assert_allclose(
        part.nu[name] / (1 - adam_b2**STEPS), expected, rtol=2e-5, atol=1e-12
    )
    assert not part.mu[name].any()


@pytest.mark.parametrize("b2s", [(0.999, 0.999), (0.95, 0.999)])
def test_there_and_back_is_the_same_state(b2s: tuple[float, float]) -> None:
    move = {"adam_b2": b2s[0], "ember_b2": b2s[1]}
    tx = with_ember(b2s[1])
    params, state = ember_run(b2s[1])
    adam_state = ember_optax.to_adam(state, adamw(b2s[0]), params, **move)
    back = ember_optax.from_adam(adam_state, tx, params, **move)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, state)
    # The absolute part is for `error`, a rounding error that is zero in a new state.
    chex.assert_trees_all_close(back, state, rtol=3e-6, atol=1e-9)


def test_before_the_first_step_there_is_nothing_to_move() -> None:
    params = make_params()
    tx = with_ember()
    state = ember_optax.from_adam(adamw().init(params), tx, params, adam_b2=0.9)
    chex.assert_trees_all_equal(state, tx.init(params))
    back = ember_optax.to_adam(state, adamw(), params, adam_b2=0.9)
    chex.assert_trees_all_equal(back, adamw().init(params))


# What goes on as if nothing had happened.


def chains(kind: str) -> tuple[Any, Any]:
    """The same optimizer with Adam and with Ember on its tables."""
    schedule = optax.linear_schedule(1e-2, 0.0, 20)
    adam = partial(optax.adamw, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
    if kind == "inject":
        inject = optax.inject_hyperparams
        body, old = inject(adam)(schedule), inject(adam)(schedule)
        table = inject(ember_optax.ember)(learning_rate=schedule)
    else:
        body, old, table = adam(schedule), adam(schedule), ember_optax.ember(schedule)
    labels = ember_optax.label_token_tables
    if kind == "two groups":
        old = optax.multi_transform({"table": old, "body": body}, labels)
    new = optax.multi_transform({"table": table, "body": body}, labels)
    if kind == "clipped":
        clip = optax.clip_by_global_norm(1.0)
        old = optax.named_chain(("clip", clip), ("adamw", old))
        new = optax.chain(clip, new)
    return old, new


KINDS = ["plain", "clipped", "two groups", "inject"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_body_goes_on_unchanged(kind: str) -> None:
    old, new = chains(kind)
    params, state = train(old, make_params())
    switched = ember_optax.from_adam(state, new, params)
    expected, _ = train(old, params, 3, state)
    found, _ = train(new, params, 3, switched)
    chex.assert_trees_all_close(found["mlp"], expected["mlp"], rtol=2e-7)
    assert not (found["embed"] == expected["embed"]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_body_goes_on_unchanged_on_the_way_back(kind: str) -> None:
    old, new = chains(kind)
    params, state = train(new, make_params())
    switched = ember_optax.to_adam(state, old, params)
    expected, _ = train(new, params, 3, state)
    found, _ = train(old, params, 3, switched)
    chex.assert_trees_all_close(found["mlp"], expected["mlp"], rtol=2e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_all_counts_are_the_number_of_steps(kind: str) -> None:
    old, new = chains(kind)
    params, state = train(old, make_params())
    switched = ember_optax.from_adam(state, new, params)
    found = optax.tree.get_all_with_path(switched, "count")
    assert len(found) >= 4
    assert {int(count) for _, count in found} == {STEPS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_can_be_donated(kind: str) -> None:
    """For which no array may be in it twice."""
    old, new = chains(kind)
    params, state = train(old, make_params(), 1)
    switched = ember_optax.from_adam(state, new, params)
    jax.jit(lambda state: state, donate_argnums=0)(switched)


def test_schedules_go_on_at_their_own_step() -> None:
    """Which is not Adam's where the schedule was started again."""
    params, (adam, decay, schedule) = adam_run()
    adam_state = (adam, decay, schedule._replace(count=jnp.int32(3)))
    state = ember_optax.from_adam(adam_state, with_ember(), params)
    assert ember_part(state).count == STEPS
    counts = [part.count for part in parts(state, optax.ScaleByScheduleState)]
    assert counts == [3, 3]


def test_without_a_schedule_they_start_at_the_step_of_adam() -> None:
    params, adam_state = train(optax.adamw(1e-3), make_params())
    state = ember_optax.from_adam(adam_state, with_ember(), params)
    counts = [part.count for part in parts(state, optax.ScaleByScheduleState)]
    assert counts == [STEPS, STEPS]


def test_tables_that_are_embers_already_stay_so() -> None:
    """As where only the embedding was, and the head was Adam's."""
    labels = partial(ember_optax.label_token_tables, exclude="lm_head")
    mixed = optax.multi_transform(
        {"table": ember_optax.ember(1e-2), "body": optax.adamw(1e-3)}, labels
    )
    params, state = train(mixed, make_params())
    moved = ember_part(ember_optax.from_adam(state, with_ember(), params))
    before = ember_part(state)
    chex.assert_trees_all_equal(moved.tables["embed"], before.tables["embed"])
    np.testing.assert_allclose(
        moved.tables["lm_head"].row, oracle_of("lm_head").row, rtol=2e-6
    )
