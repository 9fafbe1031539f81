"""Scalars for a training log, against NumPy."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ember_optax
from tests.unit.common import B2, RATE, NnxModel, boxed, groups, with_ember

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")

V, D = 40, 6
SHAPES = {"embed": (V, D), "lm_head": (D, V)}
FROM_STATE = ["silent", "grad_p10", "grad_p50", "grad_max", "col_max"]


def make_params(seed: int) -> Any:
    """Tables in which every third token has zeros, with rows and columns by size."""
    rng = np.random.default_rng(seed)
    rows = np.where(np.arange(V) % 3, np.linspace(0.1, 4, V), 0)
    table = rng.normal(size=(V, D)) * rows[:, None] * np.linspace(1, 3, D)
    tables = {k: table if k == "embed" else table.T for k in SHAPES}
    params = {**tables, "mlp": {"kernel": np.ones((D, D))}}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def injected() -> Any:
    static = ("body", "labels", "vocab_size", "vocab_axis")
    tx = optax.inject_hyperparams(ember_optax.with_ember, static_args=static)
    return tx(optax.adamw(RATE), embed_learning_rate=RATE, head_learning_rate=RATE)


def train(tx: Any, n_steps: int = 3) -> tuple[Any, Any]:
    state, updates = tx.init(make_params(0)), None
    for seed in range(1, n_steps + 1):
        updates, state = jax.jit(tx.update)(make_params(seed), state, make_params(0))
    return updates, state


def rms(x: Any, axis: Any = None) -> np.ndarray:
    return np.sqrt(np.square(np.asarray(x, np.float64)).mean(axis))


def quantiles(name: str, rows: np.ndarray) -> dict[str, float]:
    rows = np.sort(rows[rows > 0])
    last = len(rows) - 1
    chosen = {"p10": rows[last // 10], "p50": rows[last // 2], "max": rows[last]}
    return {f"{name}_{q}": value for q, value in chosen.items()}


def expected(updates: Any, params: Any) -> dict[str, float]:
    """All scalars after three steps, from float64 gradients, updates, parameters."""
    found = {}
    for path in SHAPES:
        grads = [np.asarray(make_params(s)[path], np.float64) for s in range(1, 4)]
        weights = [(1 - B2) * B2**i for i in (2, 1, 0)]
        nu = sum(w * g**2 for w, g in zip(weights, grads, strict=True))
        nu = nu / (1 - B2**3)
        token = 0 if path == "embed" else 1
        row, col = nu.mean(1 - token), nu.mean(token)
        scalars = {
            "silent": np.mean(row == 0),
            **quantiles("grad", np.sqrt(row)),
            "col_max": np.sqrt(col.max() / col.mean()),
            "largest_step": np.sqrt((1 - B2**4) / (1 - B2)),
            **quantiles("update", rms(updates[path], 1 - token)),
            **quantiles("param", rms(params[path], 1 - token)),
            "relative_update": rms(updates[path]) / rms(params[path]),
        }
        found |= {f"{path}/{name}": value for name, value in scalars.items()}
    return found


def test_all_scalars() -> None:
    updates, state = train(with_ember())
    params = make_params(0)
    run = jax.jit(partial(ember_optax.monitor, b2=B2))
    found = run(state, updates=updates, params=params)
    reference = expected(updates, params)
    assert found.keys() == reference.keys()
    for name, value in found.items():
        assert value.shape == ()
        np.testing.assert_allclose(value, reference[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "make",
    [
        with_ember,
        groups,
        injected,
        lambda: optax.MultiSteps(with_ember(), 2),
        lambda: optax.chain(
            optax.clip_by_global_norm(1.0), optax.apply_if_finite(with_ember(), 3)
        ),
    ],
    ids=["with_ember", "multi_transform", "inject", "MultiSteps", "chain"],
)
def test_states_of_other_transformations(make: Any) -> None:
    _, state = train(make(), 4)
    found = ember_optax.monitor(state)
    assert [*found] == [f"{path}/{name}" for path in SHAPES for name in FROM_STATE]
    np.testing.assert_allclose(found["embed/silent"], np.mean(np.arange(V) % 3 == 0))
    assert found["lm_head/grad_p10"] > 0


def test_nnx_optimizer() -> None:
    model = NnxModel(V, D)
    optimizer = nnx.Optimizer(model, with_ember(), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, params))
    found = nnx.jit(
        lambda optimizer, params: ember_optax.monitor(
            optimizer.opt_state, params=params, b2=B2
        )
    )(optimizer, params)
    table = np.sort(rms(params["embed"]["embedding"], 1))
    np.testing.assert_allclose(found["embed/embedding/grad_p50"], 1, rtol=1e-5)
    np.testing.assert_allclose(found["embed/embedding/param_max"], table[-1], rtol=1e-5)


def test_linen_boxes_and_a_bare_array() -> None:
    table = jnp.ones((V, D))
    for params, prefix in ((boxed({"embed": table}), "embed/"), (table, "")):
        state = ember_optax.ember(RATE).init(params)
        found = ember_optax.monitor(state, params=params)
        assert found[f"{prefix}param_p50"] == 1


def test_bfloat16_is_averaged_in_float32() -> None:
    params = {"embed": jnp.full((V, D), 256.0, jnp.bfloat16).at[:, 0].set(1)}
    state = ember_optax.ember(RATE).init(params)
    found = ember_optax.monitor(state, params=params)["embed/param_p50"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, rms(params["embed"][0]), rtol=1e-6)


# How to read them


def test_before_the_first_step() -> None:
    state = with_ember().init(make_params(0))
    found = ember_optax.monitor(state, b2=B2)
    values = {name: float(value) for name, value in found.items()}
    assert values["embed/silent"] == 1
    for name in ("grad_p10", "grad_p50", "grad_max", "col_max"):
        assert values[f"embed/{name}"] == 0
    np.testing.assert_allclose(values["embed/largest_step"], 1, rtol=1e-6)


@pytest.mark.parametrize("b2", [B2, ember_optax.adafactor_decay()])
def test_a_row_that_wakes_up_takes_the_largest_step(b2: Any) -> None:
    """Every row has the same ratios of columns, as the bound assumes."""
    tx = ember_optax.ember(1.0, b2)
    columns = jnp.linspace(1, 3, D)[None]
    busy = jnp.ones((V, 1)).at[0].set(0) * columns
    state = tx.init(busy)
    for _ in range(50):
        _, state = tx.update(busy, state, busy)
    predicted = ember_optax.monitor(state, b2=b2)["largest_step"]
    updates, state = tx.update(busy.at[:1].set(100 * columns), state, busy)
    np.testing.assert_allclose(rms(updates[0]), predicted, rtol=1e-4)
    found = ember_optax.monitor(state, updates=updates)
    np.testing.assert_allclose(found["update_max"], predicted, rtol=1e-4)
    assert found["update_max"] > 3 * found["update_p50"]


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opt_state": optax.adam(RATE).init(make_params(0))}, "no EmberState"),
        ({"params": {"embd": jnp.ones((V, D))}}, "'embed', but params has 'embd'"),
        ({"updates": {"embed": jnp.ones((V, 2))}}, r"'embed' has the shape \(40, 2\)"),
        ({"b2": 1.0}, r"b2 must be in \[0, 1\)"),
        ({"vocab_axis": "rows"}, "vocab_axis is 'rows'"),
    ],
)
def test_errors(arguments: Any, message: str) -> None:
    state = with_ember().init(make_params(0))
    with pytest.raises(ValueError, match=message):
        ember_optax.monitor(**{"opt_state": state, **arguments})


def test_square_tables_need_the_axis_of_their_tokens() -> None:
    params = {"embed": jnp.ones((D, D)).at[0].set(2)}
    state = ember_optax.ember(RATE, vocab_axis=1).init(params)
    ember_optax.monitor(state)
    with pytest.raises(ValueError, match="pass vocab_axis"):
        ember_optax.monitor(state, params=params)
    found = ember_optax.monitor(state, params=params, vocab_axis=1)
    np.testing.assert_allclose(found["embed/param_max"], rms(params["embed"][:, 0]))
