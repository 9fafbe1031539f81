"""A vocabulary that grows, shrinks or is reordered in the middle of a run."""

from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ember_optax
from ember_optax import EmberState, TableMoments

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")

V, D, B2 = 40, 6, 0.999
SHAPES = {"embed": (V, D), "lm_head": (D, V), "ngram_embed": (V, 2, 3)}


def make_params(n_tokens: int = V) -> dict[str, Any]:
    shapes = {
        name: tuple(n_tokens if size == V else size for size in shape)
        for name, shape in SHAPES.items()
    }
    tables = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    return {**tables, "mlp": {"kernel": jnp.zeros((D, D))}}


@cache
def make_tx(**options: Any) -> optax.GradientTransformationExtraArgs:
    """Ember with a learning rate of 1, so that updates are steps in units of it."""
    return optax.chain(
        optax.clip_by_global_norm(1e9),
        optax.multi_transform(
            {"table": ember_optax.ember(1.0, B2, **options), "body": optax.adamw(1.0)},
            ember_optax.label_token_tables,
        ),
    )


def tokens_first(x: jax.Array) -> np.ndarray:
    axis = int(np.argmax(x.shape))
    return np.moveaxis(np.asarray(x), axis, 0).reshape(x.shape[axis], -1)


def make_grads(seed: int, params: Any) -> Any:
    """Gradients in which token i occurs with a frequency of 1 / (i + 1), Zipf's law."""
    rng = np.random.default_rng(seed)

    def of(x: jax.Array) -> jax.Array:
        g = np.asarray(rng.normal(size=x.shape))
        axis = int(np.argmax(x.shape))
        occurs = rng.random(x.shape[axis]) < 1 / np.arange(1, x.shape[axis] + 1)
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        return jnp.asarray(g * occurs.reshape(shape), x.dtype)

    return jax.tree.map(of, params)


def make_state(tx: Any, params: Any, rng_seed: int = 0) -> Any:
    """A state long after the start, for tokens that occur as in `make_grads`."""
    rng = np.random.default_rng(rng_seed)

    def fill(part: Any) -> Any:
        if not isinstance(part, EmberState):
            return part
        moments = {}
        for path, (row, col) in part.tables.items():
            new_row = rng.uniform(0.5, 1.5, V) / np.arange(1, V + 1)
            new_col = rng.uniform(0.5, 1.5, col.shape)
            new_col *= new_row.mean() / new_col.mean()
            moments[path] = TableMoments(
                jnp.asarray(new_row, row.dtype), jnp.asarray(new_col, col.dtype)
            )
        steps, log = jnp.int32(20_000), jnp.float32(20_000 * np.log(0.999))
        return EmberState(steps, moments, part.remaining._replace(log=log))

    state = tx.init(params)
    return jax.tree.map(fill, state, is_leaf=lambda x: isinstance(x, EmberState))


def ember_part(state: Any) -> EmberState:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, EmberState))
    (part,) = [leaf for leaf in leaves if isinstance(leaf, EmberState)]
    return part


def tables(state: Any) -> dict[str, TableMoments]:
    return ember_part(state).tables


@pytest.fixture
def state() -> Any:
    return make_state(make_tx(), make_params())


# What each row becomes.


def seed_of(row: jax.Array) -> float:
    seen = np.asarray(row, np.float64)
    return seen[seen > 0].mean()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("n_tokens", [V - 7, V, V + 9])
def test_tokens_at_the_end_come_and_go(n_tokens: int, name: str, state: Any) -> None:
    new = make_params(n_tokens)
    resized = ember_optax.resize_vocab(state, make_params(), new)
    chex.assert_trees_all_equal_shapes_and_dtypes(resized, make_tx().init(new))
    before, after = tables(state)[name], tables(resized)[name]
    common = min(V, n_tokens)
    np.testing.assert_array_equal(after.row[:common], before.row[:common])
    np.testing.assert_allclose(after.row[common:], seed_of(before.row), rtol=1e-6)


def test_without_a_change_nothing_changes(state: Any) -> None:
    resized = ember_optax.resize_vocab(state, make_params(), make_params())
    chex.assert_trees_all_close(resized, state, rtol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_tokens_are_permuted_dropped_copied_and_added(name: str, state: Any) -> None:
    tokens = [5, 3, -1, 3, 0, *range(10, V), -1, -1]
    new = make_params(len(tokens))
    resized = ember_optax.resize_vocab(state, make_params(), new, tokens=tokens)
    before, after = tables(state)[name].row, tables(resized)[name].row
    expected = [seed_of(before) if i < 0 else float(before[i]) for i in tokens]
    np.testing.assert_allclose(after, expected, rtol=1e-6)


def test_rows_without_a_gradient_do_not_count_for_new_ones() -> None:
    params = {"embed": jnp.zeros((4, 2))}
    tx = ember_optax.ember(1e-2, b2=0.5)
    grads = {"embed": jnp.array([[2.0, 2.0], [0.0, 0.0], [4.0, 4.0], [0.0, 0.0]])}
    _, state = tx.update(grads, tx.init(params), params)
    state = ember_optax.resize_vocab(state, params, {"embed": jnp.zeros((5, 2))})
    np.testing.assert_allclose(tables(state)["embed"].row, [2, 0, 8, 0, 5])


def test_before_the_first_step_all_rows_are_zero() -> None:
    tx, new = make_tx(), make_params(V + 5)
    state = ember_optax.resize_vocab(tx.init(make_params()), make_params(), new)
    chex.assert_trees_all_equal(state, tx.init(new))


# What it does to a run.


def steps_of(tx: Any, state: Any, params: Any, grads: Any) -> dict[str, np.ndarray]:
    """Root mean squares of the next update of each token, in learning rates."""
    updates, _ = jax.jit(tx.update)(grads, state, params)
    rows = {name: tokens_first(updates[name]) for name in SHAPES}
    return {name: np.sqrt(np.square(x).mean(1)) for name, x in rows.items()}


@pytest.mark.parametrize("column_mean", ["all", "active"])
@pytest.mark.parametrize(
    "tokens", [[*range(V), -1, -1, -1], [*range(V - 7)], [*range(V)][::-1]]
)
def test_old_tokens_take_the_steps_that_they_would_have_taken(
    tokens: list[int], column_mean: str
) -> None:
    tx, old, new = (
        make_tx(column_mean=column_mean),
        make_params(),
        make_params(len(tokens)),
    )
    state = make_state(tx, old)
    resized = ember_optax.resize_vocab(state, old, new, tokens=tokens)
    # No gradient: what the step itself adds to the statistics is another matter.
    zeros = partial(jax.tree.map, jnp.zeros_like)
    _, state = tx.update(zeros(old), state, old)
    _, resized = tx.update(zeros(new), resized, new)
    for name in SHAPES:
        before = vhat(tables(state)[name], column_mean)
        after = vhat(tables(resized)[name], column_mean)
        kept = np.asarray(tokens) >= 0
        np.testing.assert_allclose(
            after[kept], before[np.asarray(tokens)[kept]], rtol=1e-5
        )


def vhat(moments: TableMoments, column_mean: str) -> np.ndarray:
    row, col = (np.asarray(x, np.float64) for x in moments)
    scale = col.mean() if column_mean == "all" else row.mean()
    return np.outer(row, col) / scale


@pytest.mark.parametrize("name", SHAPES)
def test_both_means_stay_equal(name: str, state: Any) -> None:
    resized = ember_optax.resize_vocab(state, make_params(), make_params(V + 9))
    row, col = tables(resized)[name]
    np.testing.assert_allclose(row.mean(), col.mean(), rtol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_first_steps_of_new_tokens_are_ordinary_and_cold_ones_are_not(
    name: str, state: Any
) -> None:
    tx, old, new = make_tx(), make_params(), make_params(V + 9)
    ordinary = np.concatenate(
        [steps_of(tx, state, old, make_grads(i, old))[name] for i in range(20)]
    )
    ordinary = np.sqrt(np.square(ordinary[ordinary > 0]).mean())

    resized = ember_optax.resize_vocab(state, old, new)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), new)
    first = steps_of(tx, resized, new, grads)[name][V:]
    first = np.sqrt(np.square(first).mean())
    assert ordinary / 1.5 < first < ordinary * 1.5

    moments = tables(resized)[name]
    tables(resized)[name] = moments._replace(row=moments.row.at[V:].set(0))
    cold = steps_of(tx, resized, new, grads)[name][V:]
    np.testing.assert_allclose(np.sqrt(np.square(cold).mean()), 31.6, rtol=0.1)
