"""A vocabulary that grows, shrinks or is reordered in the middle of a run."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from ember_optax import EmberState, TableMoments
from tests.unit.common import Tables, tables, with_ember

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")

V, D, B2 = 40, 6, 0.999
SHAPES = {"embed": (V, D), "lm_head": (D, V), "ngram_embed": (V, 2, 3)}


def make_params(n_tokens: int = V, **other: Any) -> dict[str, Any]:
    shapes = {
        name: tuple(n_tokens if size == V else size for size in shape)
        for name, shape in SHAPES.items()
    }
    tables = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    return {**tables, "mlp": {"kernel": jnp.zeros((D, D))}, **other}


def make_tx(kind: str = "with_ember") -> Any:
    """Ember with a learning rate of 1, so that updates are steps in units of it."""
    if kind == "with_ember":
        return with_ember(1.0, B2)
    groups = {"table": ember_optax.ember(1.0, B2), "body": optax.adamw(1.0)}
    tx = optax.multi_transform(groups, ember_optax.label_token_tables)
    return optax.chain(optax.clip_by_global_norm(1e9), tx)


def make_grads(seed: int, params: Any) -> Any:
    """Gradients in which token i occurs with a frequency of 1 / (i + 1), Zipf's law."""
    rng = np.random.default_rng(seed)

    def random(x: jax.Array) -> jax.Array:
        g = np.asarray(rng.normal(size=x.shape))
        axis = int(np.argmax(x.shape))
        occurs = rng.random(x.shape[axis]) < 1 / np.arange(1, x.shape[axis] + 1)
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        return jnp.asarray(g * occurs.reshape(shape), x.dtype)

    return jax.tree.map(random, params)


def make_state(tx: Any, params: Any) -> Any:
    """A state long after the start, for tokens that occur as in `make_grads`."""
    rng = np.random.default_rng(0)

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
        return EmberState(jnp.int32(20_000), moments, jnp.float32(1))

    state = tx.init(params)
    return jax.tree.map(fill, state, is_leaf=lambda x: isinstance(x, EmberState))


@pytest.fixture(params=["split", "with_ember"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def state() -> Any:
    return make_state(make_tx(), make_params())


# Rows


def vhat(moments: TableMoments) -> np.ndarray:
    row, col = (np.asarray(x, np.float64) for x in moments)
    return np.multiply.outer(row, col) / col.mean()


@pytest.mark.parametrize(
    "tokens",
    [
        [*range(V - 7)],
        [*range(V), -1, -1, -1],
        [*range(V)][::-1],
        [5, 3, -1, 3, 0, *range(10, V), -1, -1],
    ],
    ids=["drop", "add", "reverse", "mix"],
)
def test_old_tokens_keep_row_and_vhat_and_new_ones_get_the_mean(
    tokens: list[int], kind: str
) -> None:
    tx, old, new = make_tx(kind), make_params(), make_params(len(tokens))
    state = make_state(tx, old)
    resized = ember_optax.resize_vocab(state, old, new, tokens=tokens)
    chex.assert_trees_all_equal_shapes_and_dtypes(resized, tx.init(new))
    ids = np.asarray(tokens)
    for name in SHAPES:
        before, after = tables(state)[name], tables(resized)[name]
        expected = np.where(ids < 0, np.mean(before.row), np.asarray(before.row)[ids])
        np.testing.assert_allclose(after.row, expected, rtol=1e-6)
        np.testing.assert_array_equal(after.row[ids >= 0], before.row[ids[ids >= 0]])
        np.testing.assert_allclose(
            vhat(after)[ids >= 0], vhat(before)[ids[ids >= 0]], rtol=1e-5
        )
        np.testing.assert_allclose(after.row.mean(), after.col.mean(), rtol=1e-6)


@pytest.mark.parametrize("n_tokens", [V - 7, V, V + 9])
def test_by_default_tokens_change_at_the_end(n_tokens: int, state: Any) -> None:
    move = partial(ember_optax.resize_vocab, state, make_params())
    tokens = np.where(np.arange(n_tokens) < V, np.arange(n_tokens), -1)
    new = make_params(n_tokens)
    chex.assert_trees_all_equal(move(new), move(new, tokens=tokens))
    # Shapes are enough.
    chex.assert_trees_all_equal(move(new), move(jax.eval_shape(lambda: new)))
    if n_tokens == V:
        chex.assert_trees_all_close(move(new), state, rtol=1e-6)


def test_rows_without_a_gradient_do_not_count_for_new_ones() -> None:
    params = {"embed": jnp.zeros((4, 2))}
    tx = ember_optax.ember(1e-2, b2=0.5)
    grads = {"embed": jnp.array([[2.0, 2.0], [0.0, 0.0], [4.0, 4.0], [0.0, 0.0]])}
    _, state = tx.update(grads, tx.init(params), params)
    state = ember_optax.resize_vocab(state, params, {"embed": jnp.zeros((5, 2))})
    np.testing.assert_allclose(tables(state)["embed"].row, [2, 0, 8, 0, 5])


def test_before_the_first_step_all_rows_are_zero(kind: str) -> None:
    tx, new = make_tx(kind), make_params(V + 5)
    state = ember_optax.resize_vocab(tx.init(make_params()), make_params(), new)
    chex.assert_trees_all_equal(state, tx.init(new))


def test_first_steps_of_new_tokens_are_ordinary_and_those_of_zero_rows_are_not(
    state: Any,
) -> None:
    tx, old, new = make_tx(), make_params(), make_params(V + 9)
    update = jax.jit(tx.update)

    def steps(state: Any, grads: Any, params: Any) -> dict[str, np.ndarray]:
        """Root mean squares of the update of each token."""
        updates, _ = update(grads, state, params)
        return {
            name: np.sqrt(np.square(np.moveaxis(x, axis, 0).reshape(n, -1)).mean(1))
            for name in SHAPES
            for x in [np.asarray(updates[name])]
            for axis, n in [(int(np.argmax(x.shape)), max(x.shape))]
        }

    runs = [steps(state, make_grads(i, old), old) for i in range(20)]
    resized = ember_optax.resize_vocab(state, old, new)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), new)
    first = steps(resized, grads, new)
    for name, (row, col) in tables(resized).items():
        resized.ember.tables[name] = TableMoments(row.at[V:].set(0), col)
    cold = steps(resized, grads, new)
    for name in SHAPES:
        ordinary = np.concatenate([run[name] for run in runs])
        ordinary = np.sqrt(np.square(ordinary[ordinary > 0]).mean())
        now, zero = (np.sqrt(np.square(x[name][V:]).mean()) for x in (first, cold))
        assert ordinary / 1.5 < now < ordinary * 1.5
        np.testing.assert_allclose(zero, 31.6, rtol=0.1)


# Containers and meshes


def test_under_jit(state: Any) -> None:
    old, new = make_params(), make_params(V + 2)
    resize = lambda s, ids: ember_optax.resize_vocab(s, old, new, tokens=ids)  # noqa: E731
    tokens = np.array([-1, *range(V), -1])
    chex.assert_trees_all_close(
        jax.jit(resize)(state, tokens), resize(state, tokens), rtol=1e-6
    )


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


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(mode: AxisType) -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(mode,))
    rows = NamedSharding(mesh, P("x", None))
    explicit = mode == AxisType.Explicit
    shardings = None if explicit else {"embed": rows}
    tx = optax.MultiSteps(ember_optax.ember(1.0, param_shardings=shardings), 2)
    with jax.set_mesh(mesh):
        old, new = ({"embed": jax.device_put(jnp.ones((n, 2)), rows)} for n in (12, 16))
        state = tx.init(old)
        for _ in range(3):
            _, state = jax.jit(tx.update)(old, state, old)
        out = ember_optax.opt_state_shardings(tx, new, {"embed": rows})
        resize = jax.jit(
            lambda state: ember_optax.resize_vocab(state, old, new),
            out_shardings=None if explicit else out,
        )
        resized = resize(state)
        assert resized.acc_grads["embed"].sharding.is_equivalent_to(rows, 2)
        row, col = tables(resized)["embed"]
        assert row.sharding.is_fully_replicated
        assert col.sharding.is_fully_replicated
        np.testing.assert_allclose(row, np.full(16, 0.001), rtol=1e-6)


# States of other transformations

SMALL = {"embed": jnp.ones((12, 4)), "mlp": {"kernel": jnp.ones((4, 4))}}
BIGGER = {**SMALL, "embed": jnp.ones((15, 4))}
FRONT = ember_optax.with_ember(optax.adamw(1e-2), head_learning_rate=1e-2)
REVERSED = np.arange(12)[::-1]


def train(tx: Any, params: Any = SMALL, state: Any = None) -> Any:
    state = tx.init(params) if state is None else state
    for seed in range(2):
        _, state = tx.update(make_grads(seed, params), state, params)
    return state


def test_accumulated_gradients_follow_their_tokens() -> None:
    tx = optax.MultiSteps(FRONT, 3)
    state = train(tx)
    grads = np.asarray(state.acc_grads["embed"])
    assert state.mini_step == 2
    assert grads.any()
    resized = ember_optax.resize_vocab(state, SMALL, BIGGER)
    chex.assert_trees_all_equal_shapes_and_dtypes(resized, tx.init(BIGGER))
    added = np.pad(grads, ((0, 3), (0, 0)))
    np.testing.assert_array_equal(resized.acc_grads["embed"], added)
    train(tx, BIGGER, resized)
    moved = ember_optax.resize_vocab(state, SMALL, SMALL, tokens=REVERSED)
    np.testing.assert_array_equal(moved.acc_grads["embed"], grads[::-1])


def test_parameters_in_a_named_tuple() -> None:
    old, new = Tables(jnp.ones((12, 4))), Tables(jnp.ones((15, 4)))
    tx = optax.MultiSteps(ember_optax.ember(1e-2), 3)
    resized = ember_optax.resize_vocab(train(tx, old), old, new)
    chex.assert_trees_all_equal_shapes_and_dtypes(resized, tx.init(new))


WRAPPERS = {
    "ScheduleFreeState.z": lambda tx: optax.contrib.schedule_free(tx, 1e-2),
    "ScaleBySM3State.mu": lambda tx: optax.chain(optax.scale_by_sm3(), tx),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_other_state_of_a_table_that_changes_is_refused(name: str) -> None:
    state = train(WRAPPERS[name](FRONT))
    for new, tokens in ((BIGGER, None), (SMALL, REVERSED)):
        with pytest.raises(ValueError, match=rf"{name}\w* of 'embed'"):
            ember_optax.resize_vocab(state, SMALL, new, tokens=tokens)
    unchanged = ember_optax.resize_vocab(state, SMALL, SMALL)
    chex.assert_trees_all_close(unchanged, state, rtol=1e-6)


# Errors


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
            {"new": make_params(embed=jnp.ones((V, D + 1)))},
            r"'embed' had the shape \(40, 6\) and has \(40, 7\), but only axis 0",
        ),
        (
            {"new": make_params(mlp={"kernel": jnp.ones((D, D + 1))})},
            r"ScaleByAdamState\.mu of 'mlp/kernel' with the shape \(6, 6\)",
        ),
        ({"tokens": [0, 1]}, r"int64\[2\], but 'embed' has 40 rows now"),
        ({"tokens": np.zeros(V)}, r"float64\[40\], but 'embed'"),
        ({"tokens": [V] * V}, r"between 40 and 40, but 'embed' had 40 rows"),
        ({"tokens": [-2] * V}, r"between -2 and -2, but 'embed' had 40 rows"),
        ({"tokens": {"embd": [0]}}, r"'embd', but the tables of Ember are 'embed',"),
    ],
)
def test_errors(arguments: Any, message: str) -> None:
    old = arguments.get("old", make_params())
    new, tokens = arguments.get("new", old), arguments.get("tokens")
    state = make_state(make_tx(), make_params())
    with pytest.raises(ValueError, match=message):
        ember_optax.resize_vocab(state, old, new, tokens=tokens)


def test_a_state_without_ember() -> None:
    state = optax.adamw(1e-2).init(make_params())
    with pytest.raises(ValueError, match="no EmberState"):
        ember_optax.resize_vocab(state, make_params(), make_params())
