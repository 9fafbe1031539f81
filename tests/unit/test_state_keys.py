"""Keys of tables in the state survive whatever joins and splits the names of a tree."""

from pathlib import Path
from typing import Any

import chex
import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import ember_optax
from ember_optax import _paths

pytestmark = pytest.mark.usefixtures("standard_promotion")

NESTED = {"model": {"embed_tokens": {"weight": jnp.ones((16, 4))}}}
FORMS = {
    "nested": NESTED,
    "dotted": {"model.embed_tokens.weight": jnp.ones((16, 4))},
    "slashes": {"model/embed_tokens/weight": jnp.ones((16, 4))},
    "tuples": {("model", "embed_tokens", "weight"): jnp.ones((16, 4))},
    "mixed": {"model": {"embed_tokens.weight": jnp.ones((16, 4))}},
}
KEY = "model:embed_tokens:weight"


def make_state(params: Any = NESTED) -> Any:
    tx = ember_optax.ember(1e-2)
    return tx.update(params, tx.init(params), params)[1]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_key_label_and_path(form: str) -> None:
    params = FORMS[form]
    assert list(make_state(params)[0].tables) == [KEY]
    labels = ember_optax.label_token_tables(params)
    assert jax.tree.leaves(labels) == ["table"]
    (table,) = ember_optax.summarize(params).tables
    assert table.path == "model/embed_tokens/weight"


@pytest.mark.parametrize("separator", ["/", "."])
def test_flatten_and_unflatten(separator: str) -> None:
    tree = {"tables": {k: m._asdict() for k, m in make_state()[0].tables.items()}}
    flat = flatten_dict(tree, sep=separator)
    assert sorted(flat) == [
        separator.join(["tables", KEY, name]) for name in ("col", "row")
    ]
    chex.assert_trees_all_equal(unflatten_dict(flat, sep=separator), tree)


@pytest.mark.parametrize("ocdbt", [False, True])
@pytest.mark.parametrize("params", [NESTED, jnp.ones((16, 4))], ids=["tree", "bare"])
def test_orbax(params: Any, ocdbt: bool, tmp_path: Path) -> None:
    state = make_state(params)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=ocdbt)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "state", args=ocp.args.PyTreeSave(state))
        restore_args = ocp.checkpoint_utils.construct_restore_args(state)
        restored = checkpointer.restore(
            tmp_path / "state",
            args=ocp.args.PyTreeRestore(state, restore_args=restore_args),
        )
    chex.assert_trees_all_equal(restored, state)


def test_msgpack() -> None:
    state = make_state()
    data = flax.serialization.to_bytes(state)
    empty = jax.tree.map(jnp.zeros_like, state)
    restored = flax.serialization.from_bytes(empty, data)
    chex.assert_trees_all_equal(restored, state)


def test_equinox(tmp_path: Path) -> None:
    state = make_state()
    eqx.tree_serialise_leaves(tmp_path / "state.eqx", state)
    empty = jax.tree.map(jnp.zeros_like, state)
    restored = eqx.tree_deserialise_leaves(tmp_path / "state.eqx", empty)
    chex.assert_trees_all_equal(restored, state)


COLLISIONS = {
    "slash": {"a": {"embed": jnp.ones((8, 4))}, "a/embed": jnp.ones((8, 4))},
    "dot": {"a": {"embed": jnp.ones((8, 4))}, "a.embed": jnp.ones((8, 4))},
    "tilde": {"embed": jnp.ones((8, 4)), "~/embed": jnp.ones((8, 4))},
    "colon": {"a": {"embed": jnp.ones((8, 4))}, "a:embed": jnp.ones((8, 4))},
}


@pytest.mark.parametrize("case", COLLISIONS)
def test_two_leaves_of_one_name_are_refused_everywhere(case: str) -> None:
    params = COLLISIONS[case]
    mesh = jax.make_mesh((1,), ("x",))
    shardings = jax.tree.map(lambda _: jax.NamedSharding(mesh, jax.P()), params)
    one = {"embed": jnp.ones((8, 4))}
    state = optax.adam(1e-2).init(one)
    for call in (
        lambda: ember_optax.ember(1e-2).init(params),
        lambda: ember_optax.label_token_tables(params),
        lambda: ember_optax.summarize(params, labels="table"),
        lambda: ember_optax.opt_state_shardings(optax.sgd(1.0), params, shardings),
        lambda: ember_optax.resize_vocab(make_state(), params, params),
        lambda: ember_optax.from_adam(state, ember_optax.ember(1e-2), params),
    ):
        with pytest.raises(ValueError, match="Two leaves are called"):
            call()


def test_a_leaf_of_every_name_keeps_its_place() -> None:
    tree = {"b": {"a": 1}, "a": [2, {"c": 3}]}
    assert _paths.by_path(tree) == {"a/0": 2, "a/1/c": 3, "b/a": 1}


def test_public_names() -> None:
    assert set(dir(ember_optax.lazy)) == set(ember_optax.lazy.__all__)
    assert set(ember_optax.__all__) <= set(dir(ember_optax))
    assert ember_optax.experimental.fused.init
