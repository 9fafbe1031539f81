"""Roles of token tables: input embeddings and heads get different labels."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from ember_optax import label_token_tables
from tests.unit.models import from_shapes, label_roles


def heads(
    tables: Mapping[str, tuple[int, ...]], vocab_size: int | None = None
) -> set[str]:
    """Returns the heads among parameters that are all tables."""
    labels = label_roles(from_shapes(tables), vocab_size=vocab_size, include=".")
    return {path for path, label in labels.items() if label == "head"}


# The tree has a clear head as well, and all are [V, D], so that the name alone decides.
HEAD_NAMES = """
  heads/0/w medusa_head/0/1/weight logit/w to_logits/1/weight logitdense/weight
  unembed unembedding/w lm_loss/weight embed_out/weight outputs/w output/w
  predictions/w output_embed ff_out/weight softmax/w generator/0/weight
  decoder/weight linear/weight linears/0/weight dense/weight fc/weight proj/weight
  vocab_projector/weight embed/reverse_embeddings shared_embedding_softmax/w
  in_out_embed/embeddings
"""
EMBED_NAMES = """
  wte/weight shared/weight value_embeds/0 bigram_embed/weight embed_tokens_per_layer
  head/embed/embedding multi_head_embedding/embedding decoder/embedding tokens/weight
  decoder/embedding/weight linear/w Dense_0/kernel decoder/kernel output/tok_embed
"""
# The tree has no head but an embedding, which is tied.
EXTRA_NAMES = """
  embed_tokens_per_layer value_embeds/0 values_embed bigram_embed/w trigram_embed
  ngram_embed n_gram_embed hash_embed multi_head_embedding/embedding audio_embed/w
  speech_embed embed_codec/table code_embed image_embed entity_embed relation_embed
  vision_embed/embedding wpe prompt_embed
"""
MAIN_NAMES = "decoder/embed tgt_embed/lut target_embed shared shared/embedding"


@pytest.mark.parametrize("path", HEAD_NAMES.split())
def test_name_of_a_head(path: str) -> None:
    tables = dict.fromkeys(["embed", "lm_head", path], (90, 8))
    assert heads(tables) == {"lm_head", path}


@pytest.mark.parametrize("path", EMBED_NAMES.split())
def test_name_of_an_input_table(path: str) -> None:
    tables = dict.fromkeys(["embed", "lm_head", path], (90, 8))
    assert heads(tables) == {"lm_head"}


@pytest.mark.parametrize("path", EXTRA_NAMES.split())
def test_auxiliary_embedding_is_not_tied(path: str) -> None:
    assert heads(dict.fromkeys(["embed", path], (90, 8))) == {"embed"}


@pytest.mark.parametrize("path", MAIN_NAMES.split())
def test_embedding_of_the_decoder_is_tied(path: str) -> None:
    assert heads(dict.fromkeys(["encoder/embed", path], (90, 8))) == {path}


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"wte": (90, 8)}, "wte"),
        ({"bigram_embed": (90, 8)}, "bigram_embed"),
        ({"a": (90, 8)}, "a"),
        ({"user_embed": (90, 8), "item_embed": (90, 8)}, ""),
        ({"a": (90, 8), "b": (90, 8)}, ""),
        ({"a": (90, 8), "b": (8, 90)}, "b"),
        ({"0": (90, 8), "1": (8, 90)}, "1"),
        ({"Dense_0/kernel": (90, 8), "Dense_1/kernel": (8, 90)}, "Dense_1/kernel"),
        ({"embed": (90, 8), "net/2/weight": (90, 8)}, "net/2/weight"),
        ({"wte/weight": (90, 8), "net/2/weight": (90, 8)}, "net/2/weight"),
        (
            {"audio_lm/embed": (90, 8), "audio_lm/values_embed": (90, 8)},
            "audio_lm/embed",
        ),
        ({"embed": (90, 8), "a": (90, 8), "b": (8, 90)}, "b"),
        ({"embed": (90, 8), "lm_head": (8, 90), "a": (8, 90)}, "lm_head a"),
        ({"embed": (90, 8, 6), "a": (90, 8, 6), "b": (8, 6, 90)}, "b"),
    ],
)
def test_role_by_layout(tables: Mapping[str, tuple[int, ...]], expected: str) -> None:
    assert heads(tables) == set(expected.split())
    assert heads(tables, vocab_size=90) == set(expected.split())


def test_layout_of_a_vocabulary_smaller_than_the_width() -> None:
    assert heads({"a": (9, 128), "b": (128, 9)}, vocab_size=9) == {"b"}


PARAMS = {
    "wte": jnp.ones((32, 8)),
    "lm_head": {"kernel": jnp.ones((8, 32))},
    "wpe": jnp.ones((32, 8)),
    "mlp": jnp.ones((8, 8)),
}


def test_custom_role_labels() -> None:
    labels = label_token_tables(PARAMS, embed="in", head="out", body="rest")
    head = {"kernel": "out"}
    assert labels == {"wte": "in", "lm_head": head, "wpe": "rest", "mlp": "rest"}


def test_excluded_head_still_counts() -> None:
    labels = label_roles(PARAMS, exclude="lm_head")
    assert (labels["wte"], labels["lm_head"]) == ("embed", {"kernel": "body"})


def test_included_parameters_have_a_role() -> None:
    params = PARAMS | {"head/bias": jnp.ones(9), "x": jnp.ones(9)}
    labels = label_roles(params, include=["wpe", "mlp", "bias", "x"])
    assert labels == {
        "wte": "embed",
        "lm_head": {"kernel": "head"},
        "wpe": "embed",
        "mlp": "embed",
        "head/bias": "head",
        "x": "embed",
    }
    assert label_roles({"f": jnp.tanh}, include="f") == {"f": "head"}


def test_included_table_with_a_vetoed_name_is_not_a_head() -> None:
    params = {"wte": PARAMS["wte"], "wpe": PARAMS["wpe"]}
    assert label_roles(params, include="wpe") == {"wte": "head", "wpe": "embed"}


def test_wrapper_has_the_role_of_its_array() -> None:
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
    ("path", "role"),
    [("lm_head", "embed"), ("head", "embed"), ("vision/head", "head"), ("mlp", "head")],
)
def test_what_is_masked_may_be_the_head(path: str, role: str) -> None:
    params = {"wte": PARAMS["wte"], path: optax.MaskedNode()}
    assert label_roles(params)["wte"] == role


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
def test_invalid_role_labels_raise(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_token_tables(PARAMS, **options)
