"""Shardings of a whole optimizer state, for all containers and all Optax optimizers."""

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from tests.mesh.training import make_mesh

pytestmark = pytest.mark.usefixtures("standard_promotion")

MESH = make_mesh(AxisType.Auto)
SHAPES = {"embed": (64, 16), "lm_head": (16, 64), "mid": (16, 16), "bias": (16,)}
SPECS = {
    "embed": P("x", None),
    "lm_head": P(None, ("x", "y")),
    "mid": P("y", None),
    "bias": P("y"),
}


def make_params() -> dict[str, jax.Array]:
    return {name: jnp.ones(shape) for name, shape in SHAPES.items()}


def split() -> Any:
    groups = {"table": ember_optax.ember(optax.constant_schedule(1e-2))}
    groups["body"] = optax.adamw(1e-3)
    tx = optax.multi_transform(groups, ember_optax.label_token_tables)
    return optax.chain(optax.clip_by_global_norm(1.0), tx)


def with_ember(**options: Any) -> Any:
    rates = {"embed_learning_rate": optax.constant_schedule(1e-2)}
    rates["head_learning_rate"] = 1e-2
    return ember_optax.with_ember(optax.adamw(1e-3), max_norm=1.0, **rates, **options)


def boxed() -> Any:
    return {
        name: nn.Partitioned(x, names=tuple(SPECS[name]))
        for name, x in make_params().items()
    }


def as_nnx() -> Any:
    return nnx.State(
        {
            name: nnx.Param(x, out_sharding=tuple(SPECS[name]))
            for name, x in make_params().items()
        }
    )


@pytest.mark.parametrize("make_tx", [split, with_ember])
@pytest.mark.parametrize("make", [make_params, boxed, as_nnx])
def test_containers(make: Any, make_tx: Any) -> None:
    tx = make_tx()
    given = {name: NamedSharding(MESH, spec) for name, spec in SPECS.items()}
    with jax.set_mesh(MESH):
        params = make()
        shardings = ember_optax.opt_state_shardings(tx, params, given)
        structs = jax.eval_shape(lambda: params)
        again = ember_optax.opt_state_shardings(tx, structs, given)
        assert again == shardings
        state = jax.jit(tx.init, out_shardings=shardings)(params)
    n_sharded = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        body = [
            k for k in ("mid", "bias") for m in ("mu", "nu") if f".{m}['{k}" in name
        ]
        n_sharded += len(body)
        expected = NamedSharding(MESH, SPECS[body[0]] if body else P())
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), path
    assert n_sharded == 4


# Optimizers of Optax


def nested() -> Any:
    mlp = {"kernel": jnp.ones((16, 16)), "bias": jnp.ones(16)}
    return {"embed": {"embedding": jnp.ones((64, 16))}, "mlp": mlp}


def nested_shardings() -> Any:
    specs = {"kernel": P(None, "y"), "bias": P("y")}
    mlp = {name: NamedSharding(MESH, spec) for name, spec in specs.items()}
    return {"embed": NamedSharding(MESH, P("x", None)), "mlp": mlp}


def exported() -> dict[str, optax.GradientTransformation]:
    """Finds all of Optax that needs a learning rate or nothing, and has a state."""
    found = {}
    for module in (optax, optax.contrib):
        for name, make in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(make):
                continue
            for arguments in ((1e-2,), ()):
                try:
                    tx = make(*arguments)
                    state = jax.eval_shape(tx.init, nested())
                except Exception:  # needs other arguments, or is not an optimizer
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
    tx, params = OPTIMIZERS[name], nested()
    found = ember_optax.opt_state_shardings(tx, params, nested_shardings())
    state = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True)
    for leaf, sharding in pairs:
        sharding.shard_shape(leaf.shape)
        if leaf.shape == (64, 16):
            assert sharding.spec == P("x", None)
    if name in ("sm3", "lbfgs", "adam", "schedule_free_adamw"):
        state = jax.jit(tx.init, out_shardings=found)(params)
        pairs = zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True)
        for leaf, sharding in pairs:
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_stacks_are_sharded_like_the_parameter_and_other_shapes_are_replicated() -> (
    None
):
    find = ember_optax.opt_state_shardings
    out = find(optax.lbfgs(), nested(), nested_shardings())
    memory = optax.tree.get(out, "diff_params_memory")
    assert memory["embed"]["embedding"].spec == P(None, "x", None)
    assert memory["mlp"]["bias"].spec == P(None, "y")
    tx = optax.adafactor(1e-3, min_dim_size_to_factor=8)
    out = find(tx, nested(), nested_shardings())
    assert optax.tree.get(out, "v_row")["embed"]["embedding"].spec == P()


# Prefix trees and errors


def prefixes() -> dict[str, Any]:
    everywhere, rows = (NamedSharding(MESH, spec) for spec in (P(), P("x")))
    return {
        "all": everywhere,
        "subtree": {"embed": rows, "mlp": everywhere},
        "mixed": {"embed": {"embedding": rows}, "mlp": everywhere},
    }


@pytest.mark.parametrize("name", prefixes())
def test_prefix_trees_mean_the_same_as_in_jit(name: str) -> None:
    prefix = prefixes()[name]
    params = jax.jit(nested, out_shardings=prefix)()
    tx = with_ember(param_shardings=prefix)
    out = ember_optax.opt_state_shardings(tx, params, prefix)
    mu = optax.tree.get(out, "mu")["mlp"]["kernel"]
    assert mu.is_equivalent_to(params["mlp"]["kernel"].sharding, 2)
    state = jax.jit(tx.init, out_shardings=out)(params)
    jax.jit(tx.update)(params, state, params)


def test_a_prefix_that_does_not_fit_names_the_parameter() -> None:
    prefix = {"embed": NamedSharding(MESH, P("x"))}
    with pytest.raises(ValueError, match="no sharding for 'mlp/bias'"):
        ember_optax.opt_state_shardings(optax.sgd(1e-2), nested(), prefix)
    prefix["mlp"] = NamedSharding(MESH, P("x", "y"))
    with pytest.raises(ValueError, match=r"for 'mlp/bias' of shape \(16,\)"):
        ember_optax.opt_state_shardings(optax.sgd(1e-2), nested(), prefix)
