"""Labels with `vocab_size`: vocabularies that are also widths, padded or sharded."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ember_optax import label_token_tables
from tests.unit.models import from_shapes


@pytest.mark.parametrize(
    "body",
    [
        {"mlp/up/kernel": (64, 256), "mlp/down/kernel": (256, 64)},
        {"0/up": (64, 256), "1/up": (64, 256)},
        {"pooler/kernel": (256, 256)},
        {"final_norm/scale": (256,), "project_in/kernel": (64, 256)},
    ],
    ids=["in a block", "in two layers", "square", "in a norm"],
)
def test_names_decide_for_a_byte_vocabulary_as_wide_as_the_model(body: dict) -> None:
    params = from_shapes({"embed/embedding": (256, 64), "lm_head/kernel": (64, 256)})
    labels = label_token_tables(params | from_shapes(body), vocab_size=256)
    assert labels == dict.fromkeys(params, "table") | dict.fromkeys(body, "body")


@pytest.mark.parametrize(
    ("tables", "body"),
    [
        ({"a/b": (64, 300), "c": (300, 5, 20)}, {"mlp/up": (64, 256)}),
        ({"embed": (300, 64)}, {"layers/up": (2, 64, 300)}),
        ({"embed": (300, 64), "heads/0/w": (64, 300), "heads/1/w": (64, 300)}, {}),
    ],
    ids=["unnamed", "stacked layers", "repeated heads do not define a width"],
)
def test_shape_decides_if_the_vocabulary_is_not_a_width(
    tables: dict, body: dict
) -> None:
    labels = label_token_tables(from_shapes(tables | body), vocab_size=300)
    assert labels == dict.fromkeys(tables, "table") | dict.fromkeys(body, "body")


@pytest.mark.parametrize(
    ("sizes", "src"),
    [
        ({200, 300}, "table"),
        (np.array([200, 300]), "table"),
        ([200, 300], "table"),
        ((200, np.int64(300)), "table"),
        (np.int64(200), "body"),
        (np.array(200), "body"),
        (jnp.int32(200), "body"),
    ],
)
def test_one_or_several_vocab_sizes(sizes: Any, src: str) -> None:
    params = from_shapes({"src": (300, 64), "tgt": (200, 64), "both": (100, 64)})
    labels = label_token_tables(params, vocab_size=sizes)
    assert labels == {"src": src, "tgt": "table", "both": "body"}


def test_padded_vocabulary_needs_a_name() -> None:
    params = from_shapes({"embed/embedding": (512, 64), "up/kernel": (32, 512)})
    labels = label_token_tables(params, vocab_size=500)
    assert labels == {"embed/embedding": "table", "up/kernel": "body"}


def test_vocabulary_with_more_padding_needs_its_padded_size() -> None:
    params = from_shapes({"embed/embedding": (151936, 64)})  # of 151643 tokens
    with pytest.raises(ValueError, match=r"vocab_size=, the padded size.* 256"):
        label_token_tables(params, vocab_size=151643)
    labels = label_token_tables(params, vocab_size=151936)
    assert labels == {"embed/embedding": "table"}


def test_vocab_size_overrules_names() -> None:
    params = from_shapes({"embed": (300, 64), "bigram_embed": (999, 64)})
    labels = label_token_tables(params, vocab_size=300)
    assert labels == {"embed": "table", "bigram_embed": "body"}


@pytest.mark.parametrize(
    "body",
    [
        {"net/0/weight": (256, 64), "net/2/weight": (64, 256)},
        {"block/linear/w": (64, 256), "block/linear_1/w": (256, 64)},
        {"fc1/kernel": (64, 256), "fc2/kernel": (256, 64)},
        {"layers/0/up/kernel": (64, 256), "layers/1/up/kernel": (64, 256)},
        {"layers/0/mixer/dt_proj/weight": (512, 256)},
        {"rnn/weight_ih_l0": (256, 64), "rnn/weight_hh_l0": (256, 64)},
    ],
    ids=["list", "Haiku", "numbered", "in two layers", "in a mixer", "LSTM"],
)
def test_output_of_one_matrix_and_input_of_another_is_a_width(body: dict) -> None:
    params = from_shapes({"embed/weight": (256, 64), "head/kernel": (64, 256)})
    labels = label_token_tables(params | from_shapes(body), vocab_size=256)
    assert labels == dict.fromkeys(params, "table") | dict.fromkeys(body, "body")


@given(
    vocab_size=st.integers(11, 60_000),
    widths=st.lists(st.integers(2, 10), min_size=1, max_size=5),
    place=st.sampled_from(["linears/{}/weight", "Dense_{}/kernel", "emb_l/{}", "{}/w"]),
    transposed=st.booleans(),
)
def test_list_of_tables_does_not_define_a_width(
    vocab_size: int, widths: list[int], place: str, transposed: bool
) -> None:
    params = {}
    for i, width in enumerate(widths):
        shape = (width, vocab_size) if transposed else (vocab_size, width)
        params[place.format(i)] = jax.ShapeDtypeStruct(shape, "float32")
    labels = label_token_tables(params, vocab_size=vocab_size)
    assert labels == dict.fromkeys(params, "table")


def test_vocabulary_is_the_longest_of_three_axes() -> None:
    params = from_shapes({"embed": (5, 64), "conv/kernel": (5, 64, 64)})
    labels = label_token_tables(params, vocab_size=5)
    assert labels == {"embed": "table", "conv/kernel": "body"}


@given(vocab_size=st.integers(2, 60_000), axis=st.integers(2, 60_000))
@example(5, 8)
@example(23, 50)
@example(12, 16)
@example(50257, 50304)
@example(50257, 50400)
@example(256, 257)
@example(512, 511)
def test_padding_is_to_a_multiple_of_256_and_at_most_a_third(
    vocab_size: int, axis: int
) -> None:
    params = from_shapes({"embed": (axis, 999_983), "logits/kernel": (999_983, axis)})
    labels = label_token_tables(params, vocab_size=vocab_size, on_missing="ignore")
    padding = axis - vocab_size
    fits = 0 <= padding <= -vocab_size % 256 and 3 * padding <= vocab_size
    assert labels == dict.fromkeys(params, "table" if fits else "body")


def test_error_names_the_parameter_that_makes_a_vocabulary_a_width() -> None:
    params = from_shapes({"x": (256, 64), "mlp/up/kernel": (64, 256)})
    with pytest.raises(ValueError, match=r"256 is also a width.*'mlp/up/kernel' \(64"):
        label_token_tables(params, vocab_size=[256, 999])


@pytest.mark.parametrize(
    "vocab_size",
    [
        "512",
        0,
        -1,
        True,
        512.0,
        np.array(512.0),
        math.nan,
        [512, "x"],
        (512, 0),
        [True],
    ],
)
def test_invalid_vocab_size_raises(vocab_size: Any) -> None:
    params = from_shapes({"embed": (512, 64)})
    with pytest.raises(ValueError, match=r"vocab_size must be a positive integer.*got"):
        label_token_tables(params, vocab_size=vocab_size)


def test_empty_vocab_size_raises() -> None:
    with pytest.raises(ValueError, match=r"vocab_size=\[\] is empty.*None"):
        label_token_tables(from_shapes({"embed": (512, 64)}), vocab_size=[])


def label_inside_shard_map(spec: P, params: dict[str, Any], **options: Any) -> dict:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    labels = {}

    def record(params: dict[str, Any]) -> None:
        labels.update(label_token_tables(params, **options))

    inside = jax.shard_map(record, mesh=mesh, in_specs=spec, out_specs=P())
    jax.eval_shape(inside, params)
    return labels


UNNAMED = from_shapes({"a": (512, 64)})
NAMED = from_shapes({"embed": (512, 64), "lm_head": (64, 512)})


@pytest.mark.parametrize("params", [UNNAMED, NAMED], ids=["no table", "half of them"])
def test_error_inside_shard_map_says_that_shapes_are_local(params: Any) -> None:
    with pytest.raises(ValueError, match=r"Inside shard_map.* the labels outside"):
        label_inside_shard_map(P("x"), params, vocab_size=512)


def test_labels_inside_shard_map() -> None:
    tables = dict.fromkeys(NAMED, "table")
    assert label_inside_shard_map(P(), NAMED, vocab_size=512) == tables
    assert label_inside_shard_map(P("x"), NAMED) == tables
    included = label_inside_shard_map(P("x"), NAMED, vocab_size=512, include="embed")
    assert included == tables


def test_error_outside_shard_map_does_not_mention_it() -> None:
    with pytest.raises(ValueError, match=r"^(?!.*shard_map)"):
        label_token_tables(UNNAMED, vocab_size=999)
