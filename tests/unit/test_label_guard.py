"""A parameter with the axes of a table but an unknown name is an error."""

import re
from typing import Any

import jax
import optax
import pytest

from ember_optax import label_token_tables
from tests.unit.models import from_shapes, label_roles

MARIN = {"token_embed": (999, 64), "output_proj": (64, 999), "mlp/up": (64, 256)}
NANOGPT = {"embed.weight": (999, 64), "proj.weight": (999, 64), "h/0/fc": (256, 64)}
UNCLEAR = {
    "Marin": (MARIN, "token_embed", "output_proj"),
    "modded-nanogpt": (NANOGPT, "embed.weight", "proj.weight"),
    "head known": ({"a": (999, 64), "lm_head": (64, 999)}, "lm_head", "a"),
    "codebooks": (
        {"codebook_embed": (4, 999, 64), "a": (4, 64, 999)},
        "codebook_embed",
        "a",
    ),
    "stacked heads": ({"embed": (999, 64), "a": (3, 64, 999)}, "embed", "a"),
    "per layer": ({"embed_per_layer": (999, 3, 64), "a": (999, 64)}, "embed_per", "a"),
    "tied": ({"wte": (999, 64), "layers/0/a": (999, 64)}, "wte", "layers/0/a"),
    "beside an MLP as wide": (
        {"wte": (256, 64), "mlp/up": (64, 256), "a": (64, 256)},
        "wte",
        "a",
    ),
}


@pytest.mark.parametrize(("params", "table", "other"), UNCLEAR.values(), ids=UNCLEAR)
def test_error_names_both_parameters_and_the_ways_out(
    params: dict[str, tuple[int, ...]], table: str, other: str
) -> None:
    table, other = table.replace(".", "[./]"), other.replace(".", "[./]")
    message = rf"axes of the token table '{table}.*: '{other}' \(.*vocab_size=.*include"
    with pytest.raises(ValueError, match=message):
        label_token_tables(from_shapes(params))
    with pytest.raises(ValueError, match=r"exclude=\[\.\.\.\] if it is not"):
        label_token_tables(from_shapes(params), on_missing="ignore")


@pytest.mark.parametrize("params", [MARIN, NANOGPT], ids=["Marin", "modded-nanogpt"])
@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({"vocab_size": 999}, ["embed", "head", "body"]),
        ({"include": "proj"}, ["embed", "head", "body"]),
        ({"exclude": "proj"}, ["head", "body", "body"]),
        ({"exclude": "embed", "on_missing": "ignore"}, ["body", "body", "body"]),
    ],
    ids=["vocab_size", "include", "exclude", "table excluded"],
)
def test_each_way_out_works(params: Any, options: Any, roles: list[str]) -> None:
    labels = label_roles(from_shapes(params), **options)
    assert labels == dict(zip(params, roles, strict=True))


@pytest.mark.parametrize(
    "body",
    [
        {"h/0/mlp/up/kernel": (64, 256), "h/0/mlp/down/kernel": (256, 64)},
        {"h/0/attn/qkv": (64, 256), "h/0/feed_forward/w1/weight": (256, 64)},
        {"wpe": (256, 64), "lora_a": (256, 64), "time_embed/w": (64, 256)},
        {"a": (256, 32), "b": (64, 64), "c": (256,), "d": (64, 256, 2, 2)},
        {"conv/kernel": (64, 256, 512), "e": (64, 2, 32)},
    ],
    ids=["MLP", "attention", "vetoed", "other axes", "wider"],
)
def test_body_that_cannot_be_a_table_is_no_error(body: dict) -> None:
    labels = label_token_tables(from_shapes({"embed": (256, 64)} | body))
    assert labels == {"embed": "table"} | dict.fromkeys(body, "body")


def test_integers_are_not_suspected() -> None:
    params = from_shapes({"embed": (999, 64)})
    quantized = {"a": jax.ShapeDtypeStruct((999, 64), "int8")}
    assert label_token_tables(params | quantized)["a"] == "body"


def test_masked_trees_are_checked_for_what_is_left() -> None:
    params = from_shapes(MARIN)
    with pytest.raises(ValueError, match="'output_proj'"):
        label_token_tables(params | {"mlp/up": optax.MaskedNode()})
    labels = label_token_tables(params | {"token_embed": optax.MaskedNode()})
    assert labels["output_proj"] == "body"


def test_included_table_is_compared_as_well() -> None:
    params = from_shapes({"wte": (999, 64), "grams/a": (500, 64), "grams/b": (500, 64)})
    for options in ({}, {"vocab_size": 999}):
        with pytest.raises(ValueError, match=r"'grams/a' .*: 'grams/b' "):
            label_token_tables(params, include="grams/a", **options)
        labels = label_token_tables(params, include="grams/", **options)
        assert set(labels.values()) == {"table"}


def test_padded_vocabulary_does_not_decide() -> None:
    params = from_shapes({"token_embed": (1024, 64), "output_proj": (64, 1024)})
    with pytest.raises(ValueError, match=r"vocab_size=, the padded number"):
        label_token_tables(params, vocab_size=999)
    labels = label_token_tables(params, vocab_size=1024)
    assert set(labels.values()) == {"table"}


def test_vocab_size_that_is_a_width_leaves_it_to_names() -> None:
    params = from_shapes({"wte": (256, 64), "mlp/up": (64, 256), "a": (64, 256)})
    assert label_token_tables(params, vocab_size=256)["a"] == "body"


def test_error_names_the_first_few() -> None:
    params = from_shapes({"wte": (999, 64)} | {f"z{i}": (999, 64) for i in range(5)})
    first = re.escape("'z0' (999, 64), 'z1' (999, 64), 'z2' (999, 64), 2 more.")
    with pytest.raises(ValueError, match=first):
        label_token_tables(params)
