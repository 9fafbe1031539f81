"""Roles of token tables: input embeddings and heads get labels of their own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from ember_optax import label_token_tables
from tests.unit.models import MODELS, SHAPED_MODELS, Model

label_roles = functools.partial(label_token_tables, embed="embed", head="head")


def heads(tables: dict[str, tuple[int, ...]], vocab_size: int | None = None) -> set:
    params = {k: jax.ShapeDtypeStruct(v, "float32") for k, v in tables.items()}
    labels = label_roles(params, vocab_size=vocab_size)
    assert set(labels.values()) <= {"embed", "head"}
    return {path for path, label in labels.items() if label == "head"}


@pytest.mark.parametrize("model", SHAPED_MODELS, ids=lambda m: m.name)
def test_every_table_has_its_role(model: Model) -> None:
    labels = label_roles(
        model.params, vocab_size=model.vocab_sizes, include=model.include
    )
    assert labels == {leaf.path: leaf.role for leaf in model.leaves}


TOLD_BY_NAME = [
    m for m in MODELS if not any(set("?+") & set(x.marks) for x in m.leaves)
]


@pytest.mark.parametrize("model", TOLD_BY_NAME, ids=lambda m: m.name)
def test_every_table_has_its_role_by_name(model: Model) -> None:
    labels = label_roles(model.params, missing="body")
    assert labels == {leaf.path: leaf.role for leaf in model.leaves}


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"wte": (90, 8)}, "wte"),
        ({"bigram_embed": (90, 8)}, "bigram_embed"),
        ({"tied_embed": (90, 8), "embed": (90, 8)}, "tied_embed"),
        ({"embed_linear/w": (90, 8), "embed/w": (90, 8)}, "embed_linear/w"),
        ({"embed": (90, 8), "value_embeds/0": (90, 8)}, "embed"),
        ({"embed": (90, 8), "embed_audio/embedding": (90, 8)}, "embed"),
        ({"encoder/embed": (90, 8), "decoder/embed": (90, 8)}, "decoder/embed"),
        ({"user_embed": (90, 8), "item_embed": (90, 8)}, ""),
        ({"embed": (90, 8), "value_embeds": (90, 8), "lm_head": (8, 90)}, "lm_head"),
    ],
)
def test_role_by_name(tables: dict[str, tuple[int, ...]], expected: str) -> None:
    assert heads(tables) == set(expected.split())


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"a": (90, 8), "b": (8, 90)}, "b"),
        ({"Dense_0/kernel": (90, 8), "lm_head/kernel": (8, 90)}, "lm_head/kernel"),
        ({"linear/weight": (90, 8), "lm_head": (90, 8)}, "linear/weight lm_head"),
        ({"encoder/weight": (90, 8), "decoder/weight": (90, 8)}, "decoder/weight"),
        ({"a": (90, 128), "b": (128, 90)}, "b"),
        ({"embed": (90, 8), "net/2/weight": (90, 8)}, "net/2/weight"),
        ({"embed": (90, 8), "a": (90, 8), "b": (8, 90)}, "b"),
        ({"a": (90, 8), "b": (90, 8)}, ""),
        ({"a": (90, 8)}, "a"),
    ],
)
def test_role_by_layout(tables: dict[str, tuple[int, ...]], expected: str) -> None:
    assert heads(tables, vocab_size=90) == set(expected.split())


PARAMS = {
    "wte": jnp.ones((32, 8)),
    "lm_head": {"kernel": jnp.ones((8, 32))},
    "wpe": jnp.ones((32, 8)),
    "mlp": jnp.ones((8, 8)),
}


def test_labels_of_ones_own() -> None:
    labels = label_token_tables(PARAMS, embed="in", head="out", body="rest")
    head = {"kernel": "out"}
    assert labels == {"wte": "in", "lm_head": head, "wpe": "rest", "mlp": "rest"}


def test_a_head_that_is_excluded_is_still_the_head() -> None:
    labels = label_roles(PARAMS, exclude="lm_head")
    assert (labels["wte"], labels["lm_head"]) == ("embed", {"kernel": "body"})


def test_what_is_included_has_a_role() -> None:
    include = ["wpe", "mlp", "bias"]
    labels = label_roles(PARAMS | {"head/bias": jnp.ones(9)}, include=include)
    assert labels == {
        "wte": "embed",
        "lm_head": {"kernel": "head"},
        "wpe": "embed",
        "mlp": "embed",
        "head/bias": "head",
    }
    assert label_roles({"f": jnp.tanh}, include="f") == {"f": "head"}


def test_a_table_that_is_vetoed_but_included_is_no_head() -> None:
    params = {"wte": PARAMS["wte"], "wpe": PARAMS["wpe"]}
    assert label_roles(params, include="wpe") == {"wte": "head", "wpe": "embed"}


def test_a_wrapper_has_the_role_of_what_is_inside() -> None:
    labels = label_roles(PARAMS, is_leaf=lambda node: node is PARAMS["lm_head"])
    assert labels["lm_head"] == "head"


@pytest.mark.parametrize("frozen", ["wte", "lm_head"])
def test_roles_while_a_part_is_frozen(frozen: str) -> None:
    trained = optax.multi_transform(
        {"embed": optax.sgd(1.0), "head": optax.sgd(2.0), "body": optax.sgd(3.0)},
        label_roles,
    )
    tx = optax.multi_transform(
        {"trained": trained, "frozen": optax.set_to_zero()},
        {k: "frozen" if k == frozen else "trained" for k in PARAMS},
    )
    updates, _ = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    rates = {"wte": 1.0, "lm_head": 2.0, "wpe": 3.0, "mlp": 3.0} | {frozen: 0.0}
    assert {k: -jax.tree.leaves(v)[0].mean() for k, v in updates.items()} == rates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed": "a"}, r"head=None: give both.*or neither"),
        ({"head": "a"}, r"embed=None, head='a': give both"),
        ({"embed": "body", "head": "a"}, r"three different labels.*'body'"),
        ({"embed": "a", "head": "b", "body": "b"}, r"three different labels"),
        ({"embed": "a", "head": "a"}, r"For one label of all tables, pass table="),
    ],
)
def test_labels_of_roles_that_cannot_be_meant(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_token_tables(PARAMS, **options)
