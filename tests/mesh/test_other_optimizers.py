"""Shardings of the state of every optimizer that Optax exports, and of prefix trees."""

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax

pytestmark = pytest.mark.usefixtures("standard_promotion")

SHAPES = {"embed": {"embedding": (64, 16)}, "mlp": {"kernel": (16, 16), "bias": (16,)}}


def params() -> Any:
    return jax.tree.map(jnp.ones, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def shardings() -> Any:
    on = mesh()
    rows, columns = NamedSharding(on, P("x", None)), NamedSharding(on, P(None, "y"))
    return {
        "embed": {"embedding": rows},
        "mlp": {"kernel": columns, "bias": NamedSharding(on, P("y"))},
    }


def exported() -> dict[str, optax.GradientTransformation]:
    """Everything in Optax that takes a learning rate or nothing, and has a state."""
    found = {}
    for module in (optax, optax.contrib):
        for name, make in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(make):
                continue
            for arguments in ((1e-2,), ()):
                try:
                    tx = make(*arguments)
                    state = jax.eval_shape(tx.init, params())
                except Exception:  # takes something else, or is no optimizer
                    continue
                if jax.tree.leaves(state):
                    found[name] = tx
                break
    return found


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    OPTIMIZERS = exported()


def test_the_optimizers_were_found() -> None:
    assert {"adam", "sm3", "lbfgs", "adafactor", "muon"} <= OPTIMIZERS.keys()
    assert len(OPTIMIZERS) > 60


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_optax(name: str) -> None:
    tx, given = OPTIMIZERS[name], shardings()
    found = ember_optax.opt_state_shardings(tx, params(), given)
    state = jax.eval_shape(tx.init, params())
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for leaf, sharding in zip(
        jax.tree.leaves(state), jax.tree.leaves(found), strict=True
    ):
        sharding.shard_shape(leaf.shape)
        if leaf.shape == (64, 16):
            assert sharding.spec == P("x", None)


@pytest.mark.parametrize("name", ["sm3", "lbfgs", "adam", "schedule_free_adamw"])
def test_states_are_created_where_they_belong(name: str) -> None:
    tx = OPTIMIZERS[name]
    out = ember_optax.opt_state_shardings(tx, params(), shardings())
    state = jax.jit(tx.init, out_shardings=out)(params())
    for x, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(out), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)


def test_a_memory_of_several_steps_is_sharded_like_its_parameter() -> None:
    out = ember_optax.opt_state_shardings(optax.lbfgs(), params(), shardings())
    memory = optax.tree.get(out, "diff_params_memory")
    assert memory["embed"]["embedding"].spec == P(None, "x", None)
    assert memory["mlp"]["bias"].spec == P(None, "y")


# Prefix trees


def prefixes() -> dict[str, Any]:
    everywhere, rows = NamedSharding(mesh(), P()), NamedSharding(mesh(), P("x"))
    return {
        "one for all": everywhere,
        "one for a subtree": {"embed": rows, "mlp": everywhere},
        "mixed": {"embed": {"embedding": rows}, "mlp": everywhere},
    }


@pytest.mark.parametrize("name", prefixes())
def test_prefix_trees_are_what_jit_makes_of_them(name: str) -> None:
    prefix = prefixes()[name]
    placed = jax.jit(params, out_shardings=prefix)()
    tx = optax.multi_transform(
        {
            "table": ember_optax.ember(1e-2, param_shardings=prefix),
            "body": optax.adam(1),
        },
        ember_optax.label_token_tables,
    )
    out = ember_optax.opt_state_shardings(tx, params(), prefix)
    mu = optax.tree.get(out, "mu")["mlp"]["kernel"]
    assert mu.is_equivalent_to(placed["mlp"]["kernel"].sharding, 2)
    state = jax.jit(tx.init, out_shardings=out)(placed)
    jax.jit(tx.update)(placed, state, placed)


def test_a_prefix_that_does_not_fit_names_the_parameter() -> None:
    prefix = {
        "embed": NamedSharding(mesh(), P("x")),
        "mlp": NamedSharding(mesh(), P("x", "y")),
    }
    with pytest.raises(ValueError, match=r"for 'mlp/bias' of shape \(16,\)"):
        ember_optax.opt_state_shardings(optax.sgd(1e-2), params(), prefix)
    with pytest.raises(ValueError, match="no sharding for 'mlp/bias'"):
        ember_optax.opt_state_shardings(
            optax.sgd(1e-2), params(), {"embed": prefix["embed"]}
        )
