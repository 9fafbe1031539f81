"""Keys of tables in a state: from every form of a tree, through every checkpointer."""

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import ember_optax

pytestmark = pytest.mark.usefixtures("standard_promotion")

TABLE = jnp.ones((16, 4))
FORMS = {
    "nested": ({"model": {"embed": {"weight": TABLE}}}, "model:embed:weight"),
    "slashes": ({"model/embed/weight": TABLE}, "model:embed:weight"),
    "tuple": ({("model", "embed", "weight"): TABLE}, "model:embed:weight"),
    "dots": ({"model.embed.weight": TABLE}, "model::embed::weight"),
    "mixed": ({"model": {"embed.weight": TABLE}}, "model:embed::weight"),
    "list": ([[{"embed": TABLE}]], "0:0:embed"),
}


def make_state(params: Any) -> Any:
    tx = ember_optax.ember(1e-2)
    return tx.update(params, tx.init(params), params)[1]


@pytest.mark.parametrize("form", FORMS)
def test_key_is_the_path(form: str) -> None:
    params, key = FORMS[form]
    assert list(make_state(params)[0].tables) == [key]
    assert jax.tree.leaves(ember_optax.label_token_tables(params)) == ["table"]
    (table,) = ember_optax.summarize(params).tables
    assert table.path == key.replace("::", ".").replace(":", "/")


@pytest.mark.parametrize("separator", ["/", "."])
def test_flatten_and_unflatten(separator: str) -> None:
    params, key = FORMS["mixed"]
    moments = make_state(params)[0].tables
    tree = {"tables": {k: m._asdict() for k, m in moments.items()}}
    flat = flatten_dict(tree, sep=separator)
    names = [separator.join(["tables", key, name]) for name in ("col", "row")]
    assert sorted(flat) == names
    chex.assert_trees_all_equal(unflatten_dict(flat, sep=separator), tree)


def test_dots_and_nesting_do_not_collide(tmp_path: Path) -> None:
    params = {"a.b": TABLE, "a": {"b": 2 * TABLE}}
    grads = {"a.b": 3 * TABLE, "a": {"b": jnp.sin(TABLE).at[0].set(0)}}
    tx = ember_optax.ember(1e-2)
    updates, state = tx.update(grads, tx.init(params), params)
    assert sorted(state[0].tables) == ["a::b", "a:b"]
    for key in params:
        expected, _ = tx.update(grads[key], tx.init(params[key]), params[key])
        chex.assert_trees_all_close(updates[key], expected)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        chex.assert_trees_all_equal(
            checkpointer.restore(tmp_path / "state", state), state
        )


@pytest.mark.parametrize(
    ("params", "ocdbt"),
    [
        (FORMS["nested"][0], False),
        (FORMS["dots"][0], False),
        (TABLE, False),
        (TABLE, True),
    ],
    ids=["tree", "dots", "bare", "bare, ocdbt"],
)
def test_formats_of_orbax(params: Any, ocdbt: bool, tmp_path: Path) -> None:
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


COLLISIONS = {
    "slash": {"a": {"embed": TABLE}, "a/embed": TABLE},
    "colon": {"a": {"embed": TABLE}, "a:embed": TABLE},
}


@pytest.mark.parametrize("case", COLLISIONS)
def test_two_leaves_of_one_name_raise_everywhere(case: str) -> None:
    params = COLLISIONS[case]
    mesh = jax.make_mesh((1,), ("x",))
    shardings = jax.tree.map(lambda _: jax.NamedSharding(mesh, jax.P()), params)
    one = {"embed": TABLE}
    ember, adam = ember_optax.ember(1e-2), optax.adam(1e-2)
    for call in (
        lambda: ember.init(params),
        lambda: ember_optax.with_ember(adam, head_learning_rate=1.0).init(params),
        lambda: ember_optax.label_token_tables(params),
        lambda: ember_optax.summarize(params, labels="table"),
        lambda: ember_optax.opt_state_shardings(adam, params, shardings),
        lambda: ember_optax.resize_vocab(make_state(one), params, params),
        lambda: ember_optax.from_adam(adam.init(one), ember, params, adam_b2=0.999),
    ):
        with pytest.raises(ValueError, match="Two leaves have the name"):
            call()
