"""Ember inside the wrappers of Optax."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax

LEARNING_RATE = 1e-2
LABELS = {"embed": "table", "head": "table", "mlp": "body", "scale": "body"}
SHAPES = {"embed": (12, 4), "head": (4, 12), "mlp": (4, 4), "scale": (4,)}
TABLES = ["embed", "head"]

Tree = dict[str, Any]


def make_tree(seed: int, dtype: Any = np.float32) -> Tree:
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(v).astype(dtype) for k, v in SHAPES.items()}


def make_tables(seed: int, dtype: Any = np.float32) -> Tree:
    return {name: make_tree(seed, dtype)[name] for name in TABLES}


def make_ember(**options: Any) -> optax.GradientTransformationExtraArgs:
    return ember_optax.ember(LEARNING_RATE, weight_decay=0.1, **options)


def run(tx: Any, params: Tree, grads: list[Tree]) -> tuple[list[Tree], Any]:
    """Takes a jitted step for each gradient; returns all updates and the last state."""
    update = jax.jit(tx.update)
    state, all_updates = tx.init(params), []
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
        all_updates.append(updates)
    return all_updates, state


PARAMS, TABLE_PARAMS = make_tree(0), make_tables(0)
GRADS = [make_tree(seed) for seed in (1, 2, 3)]
TABLE_GRADS = [make_tables(seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def plain() -> tuple[list[Tree], Any]:
    """Updates and the last state of the two tables alone."""
    return run(make_ember(), TABLE_PARAMS, TABLE_GRADS)


def test_tables_do_not_see_each_other(plain: Any) -> None:
    for name in TABLES:
        grads = [{name: grad[name]} for grad in TABLE_GRADS]
        alone, _ = run(make_ember(), {name: TABLE_PARAMS[name]}, grads)
        chex.assert_trees_all_close([{name: u[name]} for u in plain[0]], alone)


@pytest.mark.usefixtures("standard_promotion")
def test_multi_transform(plain: Any) -> None:
    groups = {"table": make_ember(), "body": optax.adamw(1e-3)}
    tx = optax.multi_transform(groups, LABELS)
    updates, _ = run(tx, PARAMS, GRADS)
    body_of = lambda tree: {k: v for k, v in tree.items() if k not in TABLES}  # noqa: E731
    body, _ = run(optax.adamw(1e-3), body_of(PARAMS), [body_of(g) for g in GRADS])
    expected = [table | other for table, other in zip(plain[0], body, strict=True)]
    chex.assert_trees_all_close(updates, expected)


def test_masked(plain: Any) -> None:
    mask = {name: name in TABLES for name in PARAMS}
    updates, state = run(optax.masked(make_ember(), mask), PARAMS, GRADS)
    expected = [grad | table for grad, table in zip(GRADS, plain[0], strict=True)]
    chex.assert_trees_all_close(updates, expected)
    assert set(optax.tree.get(state, "tables")) == set(TABLES)


@pytest.mark.usefixtures("standard_promotion")
def test_multi_steps_takes_the_step_of_the_mean_gradient() -> None:
    updates, _ = run(optax.MultiSteps(make_ember(), 3), TABLE_PARAMS, TABLE_GRADS)
    mean = jax.tree.map(lambda *g: np.mean(g, axis=0), *TABLE_GRADS)
    expected, _ = run(make_ember(), TABLE_PARAMS, [mean])
    chex.assert_trees_all_equal(updates[1], jax.tree.map(jnp.zeros_like, mean))
    chex.assert_trees_all_close(updates[2], expected[0], rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_apply_if_finite_skips_a_bad_gradient(bad: float) -> None:
    poison = make_tables(2)
    poison["embed"][3, 2] = bad
    tx = optax.apply_if_finite(make_ember(), max_consecutive_errors=2)
    first, last = TABLE_GRADS[0], TABLE_GRADS[2]
    updates, state = run(tx, TABLE_PARAMS, [first, poison, last])
    expected, clean = run(make_ember(), TABLE_PARAMS, [first, last])
    chex.assert_trees_all_equal(updates[1], jax.tree.map(jnp.zeros_like, poison))
    chex.assert_trees_all_equal(updates[2], expected[1])
    chex.assert_trees_all_equal(state.inner_state, clean)


def test_nan_gradient_shows_in_the_next_updates() -> None:
    # As in optax.adam. Updates of zero would freeze the table without a sign of it.
    poison, grad = (np.copy(grad["embed"]) for grad in GRADS[:2])
    poison[3, 2] = np.nan
    updates, _ = run(ember_optax.scale_by_ember(), poison, [poison, grad])
    assert not np.isfinite(updates[1]).all()


def test_infinite_gradient_shows_in_its_own_update_alone() -> None:
    poison, grad = (np.copy(grad["embed"]) for grad in GRADS[:2])
    poison[3, 2] = np.inf
    updates, state = run(ember_optax.scale_by_ember(), poison, [poison, grad])
    assert np.argwhere(~np.isfinite(updates[0])).tolist() == [[3, 2]]
    chex.assert_tree_all_finite((updates[1], state))


@pytest.mark.parametrize("params", [{}, (), optax.MaskedNode()], ids=type)
def test_tree_without_tables(params: Any) -> None:
    tx = ember_optax.scale_by_ember()
    state = tx.init(params)
    assert state.tables == {}
    assert tx.update(params, state)[0] == params


def test_weight_decay_mask() -> None:
    mask = {"embed": True, "head": False}
    zero = jax.tree.map(np.zeros_like, TABLE_PARAMS)
    expected = {"embed": -1e-3 * TABLE_PARAMS["embed"], "head": zero["head"]}
    for either in (mask, lambda params: mask):
        updates, _ = run(make_ember(weight_decay_mask=either), TABLE_PARAMS, [zero])
        chex.assert_trees_all_close(updates[0], expected, rtol=1e-6)


def inject(dtype: Any = None) -> optax.GradientTransformationExtraArgs:
    factory = optax.inject_hyperparams(ember_optax.ember, hyperparam_dtype=dtype)
    return factory(LEARNING_RATE, weight_decay=0.1)


def test_injected_learning_rate_can_be_changed() -> None:
    tx, plain = inject(), ember_optax.ember(0.5, weight_decay=0.1)
    state = optax.tree.set(tx.init(TABLE_PARAMS), learning_rate=jnp.float32(0.5))
    updates, _ = jax.jit(tx.update)(TABLE_GRADS[0], state, TABLE_PARAMS)
    expected, _ = run(plain, TABLE_PARAMS, TABLE_GRADS[:1])
    chex.assert_trees_all_close(updates, expected[0], rtol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_hyperparameters_injected_in_half_precision_raise(dtype: Any) -> None:
    name = jnp.dtype(dtype).name
    with pytest.raises(ValueError, match=f"b2 is {name}.*hyperparam_dtype=jnp.float32"):
        inject().init(make_tables(0, dtype))


@pytest.mark.usefixtures("standard_promotion")  # float32 rate times bfloat16 update
def test_hyperparameters_injected_in_float32_with_bfloat16_parameters() -> None:
    params = make_tables(0, jnp.bfloat16)
    grads = [make_tables(seed, jnp.bfloat16) for seed in (1, 2, 3)]
    updates, state = run(inject(jnp.float32), params, grads)
    expected, plain_state = run(make_ember(), params, grads)
    widen = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float32), tree)  # noqa: E731
    # The plain update is rounded to bfloat16 up to six times, each by up to 2^-8.
    chex.assert_trees_all_close(widen(updates), widen(expected), rtol=6 * 2**-8)
    chex.assert_trees_all_close(
        state.inner_state[0].tables, plain_state[0].tables, rtol=2e-5
    )
