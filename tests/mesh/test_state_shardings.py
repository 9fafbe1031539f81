"""Shardings of a whole optimizer state, from every form that parameters come in."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax

pytestmark = pytest.mark.usefixtures("standard_promotion")

SPECS = {"embed": P("x", None), "lm_head": P(None, ("x", "y")), "mid": P("y", None)}


def make_mesh() -> Mesh:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def make_tx(**options: Any) -> optax.GradientTransformationExtraArgs:
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {
                "table": ember_optax.ember(optax.constant_schedule(1e-2), **options),
                "body": optax.adamw(1e-3),
            },
            ember_optax.label_token_tables,
        ),
    )


def make_params() -> dict[str, jax.Array]:
    shapes = {"embed": (64, 16), "lm_head": (16, 64), "mid": (16, 16)}
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


def make_shardings(mesh: Mesh) -> dict[str, NamedSharding]:
    return {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}


def boxed() -> Any:
    params = make_params()
    return {
        name: nn.Partitioned(params[name], names=tuple(SPECS[name])) for name in params
    }


def as_nnx() -> Any:
    params = make_params()
    return nnx.State(
        {
            name: nnx.Param(x, out_sharding=tuple(SPECS[name]))
            for name, x in params.items()
        }
    )


@pytest.mark.parametrize("make", [make_params, boxed, as_nnx])
def test_state_is_created_where_it_belongs(make: Any) -> None:
    mesh, tx = make_mesh(), make_tx()
    with jax.set_mesh(mesh):
        params = make()
        shardings = ember_optax.opt_state_shardings(tx, params, make_shardings(mesh))
        state = jax.jit(tx.init, out_shardings=shardings)(params)
    replicated = NamedSharding(mesh, P())
    n_mirrors = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        mirrors = any(f".{m}[" in jax.tree_util.keystr(path) for m in ("mu", "nu"))
        n_mirrors += mirrors
        expected = NamedSharding(mesh, SPECS["mid"]) if mirrors else replicated
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), path
    assert n_mirrors == 2


def test_rows_sharded_as_the_tables() -> None:
    mesh, tx, params = make_mesh(), make_tx(row_state="sharded"), make_params()
    shardings = ember_optax.opt_state_shardings(
        tx, params, make_shardings(mesh), row_state="sharded"
    )
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    tables = optax.tree.get(state, "tables")
    assert tables["embed"].row.sharding.spec == P("x")
    assert tables["lm_head"].row.sharding.spec == P(("x", "y"))
    assert tables["embed"].col.sharding.spec == P()


def test_sharded_rows_on_the_named_axis_beside_a_body_of_any_shape() -> None:
    options = {"row_state": "sharded", "vocab_axis": {"embed": 1}}
    mesh, params = make_mesh(), make_params() | {"norm": jnp.ones(16)}
    shardings = make_shardings(mesh) | {"norm": NamedSharding(mesh, P())}
    state_shardings = ember_optax.opt_state_shardings(
        make_tx(**options), params, shardings, **options
    )
    tables = optax.tree.get(state_shardings, "tables")
    assert tables["embed"].row.spec == P(None)
    assert tables["lm_head"].row.spec == P(("x", "y"))


def test_statistics_of_another_shape_than_the_parameter_are_replicated() -> None:
    tx, params = optax.adafactor(1e-3, min_dim_size_to_factor=8), make_params()
    shardings = ember_optax.opt_state_shardings(tx, params, make_shardings(make_mesh()))
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    v_row = optax.tree.get(state, "v_row")
    assert v_row["embed"].ndim == 1
    assert v_row["embed"].sharding.is_fully_replicated


def test_shapes_are_enough() -> None:
    mesh, tx, params = make_mesh(), make_tx(), make_params()
    shardings = make_shardings(mesh)
    from_arrays = ember_optax.opt_state_shardings(tx, params, shardings)
    structs = jax.eval_shape(lambda: params)
    assert ember_optax.opt_state_shardings(tx, structs, shardings) == from_arrays


@pytest.mark.parametrize("options", [{"row_state": "shard"}, {"vocab_axis": 0.5}])
def test_options_are_checked_as_in_ember(options: Any) -> None:
    shardings = make_shardings(make_mesh())
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        ember_optax.opt_state_shardings(make_tx(), make_params(), shardings, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("lm_head"),
            "no sharding for 'lm_head', but for 'embed', 'mid'",
        ),
        (
            lambda s: s.update(mid=NamedSharding(s["mid"].mesh, P("x", "y", None))),
            r"for 'mid' of shape \(16, 16\)",
        ),
        (lambda s: s.update(mid="x"), "has x for 'mid'"),
    ],
    ids=["missing", "too many dimensions", "no sharding"],
)
def test_errors_name_the_parameter(change: Any, message: str) -> None:
    shardings = make_shardings(make_mesh())
    change(shardings)
    with pytest.raises(ValueError, match=message):
        ember_optax.opt_state_shardings(make_tx(), make_params(), shardings)
    tables = {k: v for k, v in make_params().items() if k in ("lm_head", "mid")}
    with pytest.raises(ValueError, match=message):
        ember_optax.ember(1e-2, param_shardings=shardings).init(tables)
