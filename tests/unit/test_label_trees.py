"""Labels of trees that are masked, frozen, wrapped or without a table."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from ember_optax import ember, label_token_tables

PARAMS = {
    "embed": {"embedding": jnp.ones((32, 8))},
    "mlp": {"kernel": jnp.ones((8, 8))},
}
EMBED = {"embed": {"embedding": jnp.ones((4, 2))}}
LORA = {"layer": {"query": {"lora_a": jnp.ones((8, 2)), "lora_b": jnp.ones((2, 8))}}}


def two_groups(**options: Any) -> optax.GradientTransformationExtraArgs:
    labels = functools.partial(label_token_tables, **options)
    return optax.multi_transform({"table": ember(1.0), "body": optax.sgd(2.0)}, labels)


def one_step(tx: optax.GradientTransformation, params: Any) -> Any:
    gradients = jax.tree.map(jnp.ones_like, params)
    return jax.jit(tx.update)(gradients, tx.init(params), params)[0]


def test_error_without_a_table_tells_what_was_found_and_how_to_continue() -> None:
    params = {"mlp": {"kernel": jnp.ones((8, 4))}, "norm": {"scale": jnp.ones(4)}}
    found = r"largest parameters \(of 2\) are 'mlp/kernel' \(8, 4\), 'norm/scale'"
    continue_with = r'include=.*vocab_size=.*on_missing="ignore".*with_ember.*labels='
    with pytest.raises(ValueError, match=f"{found}.*{continue_with}"):
        label_token_tables(params)


def test_tree_without_parameters_is_not_an_error() -> None:
    assert label_token_tables({}) == {}
    tx = optax.multi_transform({"table": optax.sgd(1.0)}, label_token_tables)
    optax.tree.map_params(tx, lambda x: x, tx.init(EMBED))


def freeze_by_label(tx: Any, part: str) -> Any:
    groups = {"trained": tx, "frozen": optax.set_to_zero()}
    labels = {k: "frozen" if k == part else "trained" for k in PARAMS}
    return optax.multi_transform(groups, labels)


def freeze_by_mask(tx: Any, part: str) -> Any:
    trained = {k: k != part for k in PARAMS}
    rest = optax.masked(optax.set_to_zero(), {k: k == part for k in PARAMS})
    return optax.chain(optax.masked(tx, trained), rest)


def freeze_inside(tx: Any, part: str) -> Any:
    everything = optax.multi_transform(
        {"all": freeze_by_label(tx, part)}, lambda _: "all"
    )
    return optax.masked(everything, True)


FREEZE = [freeze_by_label, freeze_by_mask, freeze_inside]


@pytest.mark.parametrize("freeze", FREEZE)
@pytest.mark.parametrize("part", PARAMS)
@pytest.mark.parametrize(
    "options",
    [{}, {"vocab_size": 32, "include": "^embed/", "exclude": "^mlp/"}],
    ids=["names", "options"],
)
def test_frozen_parts(freeze: Any, part: str, options: dict[str, Any]) -> None:
    tx = freeze(two_groups(**options), part)
    updates = one_step(tx, PARAMS)
    expected = {"embed": -1.0, "mlp": -2.0} | {part: 0.0}
    assert {k: next(iter(v.values())).mean() for k, v in updates.items()} == (
        pytest.approx(expected)
    )
    optax.tree.map_params(tx, lambda x: x, tx.init(PARAMS))


def test_masked_parts_have_no_label() -> None:
    params = {"embed": optax.MaskedNode(), "lora": LORA, "mlp": PARAMS["mlp"]}
    labels = label_token_tables(params, include="embed")
    chex.assert_trees_all_equal_structs(labels, params)
    assert set(jax.tree.leaves(labels)) == {"body"}


def test_lora_factors_are_not_tables_and_the_error_says_so() -> None:
    message = r"'layer/query/lora_a'.*not token tables.*on_missing=\"ignore\""
    with pytest.raises(ValueError, match=message) as error:
        label_token_tables(LORA)
    assert "include=" not in str(error.value)
    updates = one_step(two_groups(on_missing="ignore"), LORA)
    assert {x.mean().item() for x in jax.tree.leaves(updates)} == {-2.0}


def test_lora_training_with_nnx() -> None:
    model = nnx.LoRALinear(8, 8, lora_rank=2, rngs=nnx.Rngs(0))

    def loss(model: nnx.LoRALinear) -> jax.Array:
        return model(jnp.ones((1, 8))).sum()

    tx = two_groups(on_missing="ignore")
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    factors = nnx.DiffState(0, nnx.LoRAParam)
    optimizer.update(model, nnx.grad(loss, argnums=factors)(model))
    with pytest.raises(ValueError, match=r"LoRA factors such as"):
        nnx.Optimizer(model, two_groups(), wrt=nnx.LoRAParam)


def test_on_missing_changes_nothing_if_there_are_tables() -> None:
    assert label_token_tables(PARAMS, on_missing="ignore") == label_token_tables(PARAMS)


def test_invalid_on_missing_raises() -> None:
    message = r'on_missing must be "raise" or "ignore".*\'warn\''
    with pytest.raises(ValueError, match=message):
        label_token_tables(PARAMS, on_missing="warn")  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("bigram_embed", "'bigram_embed' matches no parameter.*'embed/embedding'"),
        (["mlp", "wpe"], "'wpe' matches no parameter"),
        ("(", r"'\(' is not a valid regular expression.*re.escape"),
        ("", "not empty, got ''"),
        (["embed", 3], "needs a regular expression.*got 3"),
        (None, "needs a regular expression.*got None"),
        (b"embed", "needs a regular expression.*got 101"),
    ],
)
def test_invalid_pattern_raises(argument: str, patterns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}.*{message}"):
        label_token_tables(PARAMS, **{argument: patterns})


@pytest.mark.parametrize("tree", [{}, [], None, optax.MaskedNode(), {"a": None}])
def test_empty_tree_never_raises(tree: Any) -> None:
    labels = label_token_tables(tree, vocab_size=7, include="embed", exclude="mlp")
    assert labels == tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Wrapper:
    """An array with the names of its axes, like haliax's NamedArray."""

    array: Any
    axes: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})


def is_wrapper(node: Any) -> bool:
    return isinstance(node, Wrapper)


WRAPPED = {
    "embed": {"weight": Wrapper(jnp.ones((32, 8)), ("vocab", "embed"))},
    "heads": [{"weight": Wrapper(jnp.ones((32, 8)))} for _ in range(2)],
    "mlp": {"kernel": Wrapper(jnp.ones((8, 8))), "bias": jnp.ones(8)},
}


@pytest.mark.parametrize("options", [{"include": "^heads/"}, {"vocab_size": 32}])
def test_wrapper_has_a_label_inside_or_one_for_itself(options: Any) -> None:
    inside = label_token_tables(WRAPPED, **options)
    assert inside["embed"]["weight"] == Wrapper("table", ("vocab", "embed"))
    assert label_token_tables(WRAPPED, **options, is_leaf=is_wrapper) == {
        "embed": {"weight": "table"},
        "heads": [{"weight": "table"}, {"weight": "table"}],
        "mlp": {"kernel": "body", "bias": "body"},
    }


def test_wrapper_is_a_table_if_one_of_its_arrays_is() -> None:
    params = {"lm_head": [jnp.ones((32, 8)), jnp.ones(32)], "mlp": [jnp.ones(8)]}
    labels = label_token_tables(params, is_leaf=lambda x: isinstance(x, list))
    assert labels == {"lm_head": "table", "mlp": "body"}


def test_optimizer_whose_masks_act_on_wrappers() -> None:
    labels = functools.partial(label_token_tables, vocab_size=32, is_leaf=is_wrapper)
    groups = {"table": optax.sgd(1.0), "body": optax.sgd(2.0)}

    def embed_only(params: Any) -> Any:
        mask = jax.tree.map(lambda _: False, params, is_leaf=is_wrapper)
        return mask | {"embed": {"weight": True}}

    tx = optax.masked(optax.multi_transform(groups, labels), embed_only)
    updates = one_step(tx, WRAPPED)
    means = {k: jax.tree.leaves(v)[0].mean() for k, v in updates.items()}
    assert means == {"embed": -1.0, "heads": 1.0, "mlp": 1.0}


@given(
    st.recursive(
        st.sampled_from([jnp.ones((32, 8)), jnp.ones(8), optax.MaskedNode(), None]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["embed", "mlp", "wpe"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    )
)
def test_labels_mirror_any_tree(params: Any) -> None:
    labels = label_token_tables(params, vocab_size=32, on_missing="ignore")
    chex.assert_trees_all_equal_structs(labels, params)
