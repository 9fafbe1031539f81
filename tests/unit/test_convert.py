"""From Adam to Ember and back: against NumPy, in every container and on meshes."""

from functools import cache, partial
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

pytestmark = pytest.mark.usefixtures("standard_promotion")

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
    chex.assert_trees_all_close(back, state, rtol=3e-6)


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


# Containers, dtypes, transformations and meshes.


def test_bfloat16_moments_are_averaged_in_float32() -> None:
    params = {"embed": jnp.ones((512, 4), "bfloat16")}
    tx = ember_optax.ember(1e-2)
    adam = optax.adamw(1e-2)
    state = adam.init(params)
    nu = jnp.arange(512 * 4).reshape(512, 4).astype("bfloat16")
    state = (state[0]._replace(nu={"embed": nu}, count=jnp.int32(5)), *state[1:])
    part = ember_part(ember_optax.from_adam(state, tx, params))
    row, col = part.tables["embed"]
    assert row.dtype == col.dtype == jnp.float32
    np.testing.assert_allclose(row, np.asarray(nu, np.float64).mean(1), rtol=1e-6)
    np.testing.assert_allclose(col, np.asarray(nu, np.float64).mean(0), rtol=1e-6)
    back = ember_optax.to_adam((part, *tx.init(params)[1:]), adam, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, adam.init(params))


def test_the_dtype_of_moments_is_that_of_tx() -> None:
    params, adam_state = adam_run()
    tx = optax.multi_transform(
        {
            "table": ember_optax.ember(1.0),
            "body": optax.adamw(1.0, mu_dtype="bfloat16"),
        },
        ember_optax.label_token_tables,
    )
    state = ember_optax.from_adam(adam_state, tx, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))


def test_linen_boxes() -> None:
    params = {
        "embed": nn.LogicallyPartitioned(jnp.ones((12, 5)), ("vocab", "embed")),
        "mlp": {"kernel": nn.LogicallyPartitioned(jnp.ones((5, 6)), ("embed", "mlp"))},
    }
    tx = with_ember()
    _, adam_state = train(adamw(), params)
    state = ember_optax.from_adam(adam_state, tx, params)
    chex.assert_trees_all_equal_structs(state, tx.init(params))
    back = ember_optax.to_adam(state, adamw(), params)
    chex.assert_trees_all_equal_structs(back, adam_state)
    train(tx, params, 1, state)


class Model(nnx.Module):
    def __init__(self) -> None:
        self.embed = nnx.Embed(12, 5, rngs=nnx.Rngs(0))
        self.mlp = nnx.Linear(5, 6, rngs=nnx.Rngs(0))


def test_nnx_optimizer() -> None:
    model = Model()
    old = nnx.Optimizer(model, adamw(), wrt=nnx.Param)
    for seed in range(STEPS):
        old.update(model, make_grads(seed, nnx.state(model, nnx.Param)))

    tx = with_ember()
    new = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params, adam_state = nnx.as_pure((nnx.state(model, nnx.Param), old.opt_state))
    state = ember_optax.from_adam(adam_state, tx, params)
    nnx.update(new.opt_state, nnx.state(state))

    part = ember_part(nnx.as_pure(new.opt_state))
    (adam,) = parts(nnx.as_pure(old.opt_state), optax.ScaleByAdamState)
    nu = np.asarray(adam.nu["embed"]["embedding"])
    np.testing.assert_allclose(
        part.tables["embed:embedding"].row, nu.mean(1), rtol=1e-6
    )
    new.update(model, make_grads(STEPS, nnx.state(model, nnx.Param)))
    assert ember_part(nnx.as_pure(new.opt_state)).count == STEPS + 1


def test_under_jit_and_eval_shape() -> None:
    params, adam_state = adam_run()
    tx = with_ember()
    move = partial(ember_optax.from_adam, tx=tx, params=params)
    chex.assert_trees_all_close(jax.jit(move)(adam_state), move(adam_state), rtol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(move, adam_state), tx.init(params)
    )


SPECS = {"embed": P("x", "y"), "lm_head": P("y", "x"), "mlp": {"kernel": P(None, "y")}}


@pytest.mark.parametrize("row_state", ["replicated", "sharded"])
@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(mode: AxisType, row_state: str) -> None:
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(mode,) * 2)
    params = {
        "embed": jnp.ones((12, 4)),
        "lm_head": jnp.ones((4, 12)),
        "mlp": {"kernel": jnp.ones((4, 6))},
    }
    _, here = train(adamw(), params)
    expected = ember_optax.from_adam(here, with_ember(), params)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS)
    explicit = mode == AxisType.Explicit
    tx = with_ember(
        row_state=row_state, param_shardings=None if explicit else shardings
    )
    options = {"row_state": row_state}
    with jax.set_mesh(mesh):
        params = jax.device_put(params, shardings)
        there = ember_optax.opt_state_shardings(tx, params, shardings, **options)
        back_there = ember_optax.opt_state_shardings(adamw(), params, shardings)
        adam_state = jax.device_put(here, back_there)
        move = jax.jit(
            lambda state, params: ember_optax.from_adam(state, tx, params),
            out_shardings=None if explicit else there,
        )
        state = move(adam_state, params)
        assert _shardings(state) == _shardings(jax.device_put(state, there))
        chex.assert_trees_all_close(jax.device_get(state), expected, rtol=1e-6)

        move_back = jax.jit(
            lambda state, params: ember_optax.to_adam(state, adamw(), params),
            out_shardings=None if explicit else back_there,
        )
        back = move_back(state, params)
        assert _shardings(back) == _shardings(adam_state)
        chex.assert_trees_all_close(
            jax.device_get(back),
            ember_optax.to_adam(expected, adamw(), jax.device_get(params)),
            rtol=1e-5,
        )


@pytest.mark.parametrize("mode", [AxisType.Auto, AxisType.Explicit])
def test_outside_of_jit_the_statistics_are_replicated(mode: AxisType) -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(mode,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P("x", None))
        params = {"embed": jax.device_put(jnp.ones((12, 5)), rows)}
        tx = ember_optax.ember(1e-2)
        state = ember_optax.from_adam(optax.adamw(1e-2).init(params), tx, params)
        row, col = ember_part(state).tables["embed"]
        assert row.sharding.is_fully_replicated
        assert col.sharding.is_fully_replicated
        assert len(row.sharding.device_set) == 4


def _shardings(tree: Any) -> list[Any]:
    """Shardings with specs in one notation."""
    return [
        (x.sharding.mesh.axis_names, P(*(*x.sharding.spec, *[None] * x.ndim)[: x.ndim]))
        for x in jax.tree.leaves(tree)
    ]


# What is refused.


def chained_twice() -> tuple[Any, Any]:
    tx = optax.chain(optax.adamw(1e-2), optax.scale_by_adam())
    return train(tx, make_params())[1], with_ember()


def of_another_model() -> tuple[Any, Any]:
    params = {**make_params(), "bigram_embed": jnp.ones((4, 3))}
    return train(adamw(), params)[1], with_ember()


def without_the_body() -> tuple[Any, Any]:
    return train(adamw(), {"embed": jnp.ones(SHAPES["embed"])})[1], with_ember()


def of_another_width() -> tuple[Any, Any]:
    params = {**make_params(), "embed": jnp.ones((12, 6))}
    return train(adamw(), params)[1], with_ember()


def with_another_body() -> tuple[Any, Any]:
    params = {**make_params(), "mlp": {"kernel": jnp.ones((5, 7))}}
    return train(adamw(), params)[1], with_ember()


def steps_that_differ() -> tuple[Any, Any]:
    old, new = chains("two groups")
    state = train(old, make_params())[1]
    counts = iter(range(10))

    def count(part: Any) -> Any:
        if not isinstance(part, optax.ScaleByScheduleState):
            return part
        return part._replace(count=jnp.int32(next(counts)))

    is_leaf = lambda x: isinstance(x, optax.ScaleByScheduleState)  # noqa: E731
    elsewhere = optax.chain(optax.clip_by_global_norm(1.0), new)
    return jax.tree.map(count, state, is_leaf=is_leaf), elsewhere


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda: ({"a": {"mu": 1.0}}, with_ember()), r"type dict with .* 'a/mu'"),
        (lambda: (ember_run()[1], adamw()), "all of them of"),
        (lambda: (adam_run()[1], adamw()), "all of them of Adam"),
        (chained_twice, "'embed' twice"),
        (of_another_model, "moments of 'bigram_embed', but tx trains only"),
        (without_the_body, "trains 'lm_head', 'mlp/kernel', .* moments of 'embed'"),
        (of_another_width, r"'embed' has the shape \(12, 6\), but its state"),
        (with_another_body, r"'mlp/kernel' with the shape \(5, 7\)"),
        (steps_that_differ, r"steps differ .*\(0 for .*, 1 for "),
    ],
)
def test_errors(case: Any, message: str) -> None:
    state, tx = case()
    with pytest.raises(ValueError, match=message):
        ember_optax.from_adam(state, tx, make_params())


def test_to_adam_needs_ember() -> None:
    params, state = adam_run()
    with pytest.raises(ValueError, match=r"given state .* all of them of Adam"):
        ember_optax.to_adam(state, adamw(), params)


@pytest.mark.parametrize("name", ["adam_b2", "ember_b2"])
def test_a_decay_out_of_range(name: str) -> None:
    params, state = adam_run()
    with pytest.raises(ValueError, match=r"b2 is 1\.0"):
        ember_optax.from_adam(state, with_ember(), params, **{name: 1.0})
