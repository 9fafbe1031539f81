"""The summary of token tables agrees with the real optimizer states and labels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.typing import DTypeLike

import ember_optax


def nbytes(tree: object) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bytes_agree_with_the_real_states(dtype: DTypeLike) -> None:
    params = {
        "embed": {"embedding": jnp.ones((100, 8), dtype)},
        "per_layer_embeddings": jnp.ones((100, 3, 4), dtype),
        "lm_head": {"kernel": jnp.ones((8, 100), dtype)},
        "mlp": {"kernel": jnp.ones((8, 16), dtype)},
    }
    tables = {k: v for k, v in params.items() if k != "mlp"}
    summary = ember_optax.summarize(params)
    count, bias_correction = 4, 4
    ember = jax.eval_shape(ember_optax.scale_by_ember().init, tables)
    adam = jax.eval_shape(optax.scale_by_adam().init, tables)
    assert summary.state_bytes == nbytes(ember) - count - bias_correction
    assert summary.adam_bytes == nbytes(adam) - count
    assert summary.size == 100 * (8 + 3 * 4 + 8)
    assert summary.body_size == 8 * 16
    assert {t.path for t in summary.tables} == {
        "embed/embedding",
        "per_layer_embeddings",
        "lm_head/kernel",
    }


def test_shapes_are_enough() -> None:
    params = {"wte": jnp.ones((10, 4)), "wpe": jnp.ones((7, 4))}
    from_shapes = ember_optax.summarize(jax.eval_shape(lambda: params))
    assert from_shapes == ember_optax.summarize(params)


ROLES = functools.partial(ember_optax.label_token_tables, embed="embed", head="head")


@pytest.mark.parametrize(
    ("labels", "table", "expected"),
    [
        (ROLES, ("embed", "head"), {"wte": "embed", "lm_head": "head"}),
        ({"wte": "table", "lm_head": "body"}, "table", {"wte": "table"}),
        ({"wte": "head", "lm_head": "embed"}, "head", {"wte": "head"}),
        ("a", ["a", "b"], {"wte": "a", "lm_head": "a"}),
    ],
)
def test_roles(labels: Any, table: Any, expected: dict[str, str]) -> None:
    params = {"wte": jnp.ones((10, 4)), "lm_head": jnp.ones((4, 10))}
    summary = ember_optax.summarize(params, labels, table=table)
    assert {t.path: t.role for t in summary.tables} == expected


def test_the_only_table_is_a_head() -> None:
    params = {"wte": jnp.ones((10, 4)), "mlp": jnp.ones((4, 10))}
    assert ember_optax.summarize(params).tables[0].role == "head"
    bare = ember_optax.summarize(jnp.ones((10, 4)), "table").tables[0]
    assert (bare.path, bare.role) == ("", "table")


def test_given_labels_need_no_names() -> None:
    params = {"token_embed": jnp.ones((10, 4)), "output_proj": jnp.ones((4, 10))}
    labels = functools.partial(ROLES, vocab_size=10)
    roles = {t.path: t.role for t in ember_optax.summarize(params, labels).tables}
    assert roles == {"token_embed": "embed", "output_proj": "head"}
    labels = {"token_embed": "table", "output_proj": "body"}
    assert ember_optax.summarize(params, labels).tables[0].path == "token_embed"


def test_labels_of_roles_need_no_table_argument() -> None:
    params = {"wte": jnp.ones((10, 4)), "lm_head": jnp.ones((4, 10))}
    assert ember_optax.summarize(params, ROLES) == ember_optax.summarize(params)


def test_labels_of_whole_branches() -> None:
    params = {
        "tables": {"wte": jnp.ones((10, 4)), "lm_head": jnp.ones((4, 10))},
        "layers": [{"kernel": jnp.ones((4, 4)), "bias": None}, jnp.ones(4)],
    }
    labels = {"tables": "table", "layers": "body"}
    summary = ember_optax.summarize(params, labels)
    assert [t.path for t in summary.tables] == ["tables/lm_head", "tables/wte"]
    assert summary.body_size == 4 * 4 + 4


def test_empty_tree_is_not_an_error() -> None:
    assert ember_optax.summarize({}).tables == ()


@pytest.mark.parametrize("labels", [ember_optax.label_token_tables, {"wte": "table"}])
def test_label_without_parameters_raises(labels: Any) -> None:
    params = {"wte": jnp.ones((10, 4))}
    with pytest.raises(ValueError, match=r"label 'tok', but there are 'table'.*table="):
        ember_optax.summarize(params, labels, table="tok")


def test_printed_table_lines_up() -> None:
    params = {"wte": jnp.ones((50304, 768)), "lm_head": jnp.ones((768, 50304))}
    lines = str(ember_optax.summarize(params)).splitlines()
    assert lines[0].split()[:2] == ["token", "table"]
    row = "lm_head head 768 x 50304 float32 204.3 kB 309.1 MB"
    assert lines[2].split() == row.split()
    assert lines[3].split()[:2] == ["wte", "embed"]
    column = lines[0].index("Ember state")
    assert all(line[column - 1] in " -" for line in lines)


def test_table_label_on_a_vector_raises() -> None:
    with pytest.raises(ValueError, match="'norm' has the shape"):
        ember_optax.summarize({"norm": jnp.ones(3)}, {"norm": "table"})
