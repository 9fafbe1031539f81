"""Labels on parameter trees of real models, and by name."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from ember_optax import label_token_tables
from tests.unit.models import MODELS, Model, label_roles


@pytest.mark.parametrize(
    "model", [m for m in MODELS if m.vocab_sizes], ids=lambda m: m.name
)
def test_every_parameter_with_vocab_size(model: Model) -> None:
    include = [f"^{re.escape(path)}$" for path in model.included]
    labels = label_roles(model.params, vocab_size=model.vocab_sizes, include=include)
    assert labels == model.roles


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_every_parameter_by_name(model: Model) -> None:
    try:
        labels = label_roles(model.params, on_missing="ignore")
    except ValueError as error:
        message = str(error).replace(".", "/")
        assert any(repr(path.replace(".", "/")) in message for path in model.unclear)
        return
    for path in model.params.keys() - model.unclear:
        assert (labels[path] == "body") == (model.roles[path] == "body"), path
    if not model.unclear and not model.included:
        assert labels == model.roles


# Names of other models, and of components that are easily mistaken for a table.
TABLE_NAMES = """
  gpt_neox/embed_in/embedding gpt_neox/embed_out/kernel tokens_embed/embedding
  text_model/embeddings/token_embedding/embedding generator_lm_head/kernel
  vocab_projector/kernel language_model/in_out_embed/embeddings lm_head
  model/embed_tokens_per_layer/embedding unembed/kernel unembedding/w
  value_embeds/0/embedding codebooks_head/kernel codebook_heads/0/kernel
  token_embd/weight LMHead_0/kernel mtp/0/lm_head/kernel mtp_heads/1/kernel
  TokenEmbedder_0/embedding prefix_lm/embedder/embedding shared/pytree/0/weight
  vision_language_model/language_model/embed_tokens/embedding to_logits/kernel
  embeddings_table model/embedding decoder/embed_tokens/weight lm_loss/weight
  token_and_position_embedding/token_embedding/embeddings lm_head/linear/kernel
  mlm_head/decoder/kernel lora_model/embed_tokens/weight codebook_embed/embedding
  visual_bert/embeddings/word_embeddings/weight base/emb_luts/0/weight
  model.embed_tokens.base_layer.weight embed/weight/array embed.embedding
  user_id_embedding/embedding masked_lm_head/lm_head/logits/kernel
"""
BODY_NAMES = """
  vision_model/embeddings/patch_embedding/kernel text_projection/kernel
  vision_model/embeddings/position_embedding/embedding vocab_transform/kernel
  embeddings_project/kernel y_embedder/embedding_table/embedding embed_proj/weight
  time_embedding/linear_1/kernel speaker_embed/embedding lang_embedding/embedding
  state_embed/embedding seg_embed/weight attn/out_proj/kernel mlp/to_out/kernel
  attn/output_projection/kernel lm_head/lora_a lm_head_lora_a lm_head/w_lora_b
  embedder/embedding_lora_a codebook/embedding codebooks/0/embedding router/kernel
  quantizer/embedding position_embedding_table/embedding classifier/kernel
  query_embed/embedding attention/relative_bias/embedding timestep_embedder/weight
  rel_pos_emb/emb/weight prompt_embeddings embed_norm/scale token_type_embed/embedding
  posterior/kernel cls_head/kernel value_head/kernel reward_head/kernel critic/kernel
  self_attention/embeddings lm_head/dense/kernel mtp_block/mtp_1_projection/kernel
  attn/token_proj/kernel moe/router/logits/kernel moe/gate/logits/kernel x_embedder/w
  decoder_embed/weight audio_embed/weight lm_head/lora/b embed/scales lm_head/zeros
  token_and_position_embedding/position_embedding/embeddings classifier/logits/kernel
  lddt_head/logits/weights quantize/embedding/weight vq/_codebook/embed_avg
  prompt_encoder/default/embedding/weight position/embedding/weight shared_head/norm/w
  vision_tower.embeddings.weight model.lm_head.lora_A.default.weight
"""
MATRIX = jax.ShapeDtypeStruct((512, 64), jnp.float32)
OTHER = jax.ShapeDtypeStruct((300, 64), jnp.float32)
EMBED = {"embed": {"embedding": MATRIX}}


@pytest.mark.parametrize("path", TABLE_NAMES.split())
def test_name_of_a_table(path: str) -> None:
    assert label_token_tables({path: MATRIX}) == {path: "table"}


@pytest.mark.parametrize("path", BODY_NAMES.split())
def test_name_of_a_body_parameter(path: str) -> None:
    assert label_token_tables({**EMBED, path: OTHER})[path] == "body"


@pytest.mark.parametrize("path", ["head", "output/kernel", "output_layer/weight"])
def test_bare_head_is_a_table_if_it_is_as_long_as_another_table(path: str) -> None:
    head = jax.ShapeDtypeStruct((64, 512), jnp.float32)
    assert label_token_tables({**EMBED, path: head})[path] == "table"
    assert label_token_tables({**EMBED, path: OTHER})[path] == "body"
    assert label_token_tables({**EMBED, f"mlp/{path}": head})[f"mlp/{path}"] == "body"


@pytest.mark.parametrize("name", ["lora_embedding", "wpe/embedding", "pos_embed"])
def test_vetoed_name_is_body_whatever_its_shape(name: str) -> None:
    labels = label_token_tables({**EMBED, name: MATRIX}, vocab_size=512)
    assert labels[name] == "body"
    assert label_token_tables({**EMBED, name: MATRIX}) == labels


@pytest.mark.parametrize(
    "leaf",
    [
        jax.ShapeDtypeStruct((512, 64), jnp.int8),
        jax.ShapeDtypeStruct((512, 64), jnp.complex64),
        jax.ShapeDtypeStruct((512,), jnp.float32),
        jax.ShapeDtypeStruct((1, 512), jnp.float32),
        jax.ShapeDtypeStruct((16, 16, 3, 512), jnp.float32),
        jnp.tanh,
    ],
    ids=["int8", "complex", "one axis", "axis of size 1", "four axes", "function"],
)
@pytest.mark.parametrize("vocab_size", [None, 512])
def test_unsuitable_dtype_or_rank_is_body(leaf: Any, vocab_size: int | None) -> None:
    params = {**EMBED, "lm_head": {"weight": leaf}}
    labels = label_token_tables(params, vocab_size=vocab_size)
    assert labels["lm_head"]["weight"] == "body"


def test_include_and_exclude_win_and_exclude_wins_over_include() -> None:
    params = EMBED | {"wpe": {"embedding": MATRIX}, "lm_head": {"bias": jnp.ones(3)}}
    labels = label_token_tables(
        params, include=["^wpe/", "lm_head"], exclude=r"^(embed|lm_head)/"
    )
    assert labels == {
        "embed": {"embedding": "body"},
        "wpe": {"embedding": "table"},
        "lm_head": {"bias": "body"},
    }


def test_custom_labels() -> None:
    labels = label_token_tables({**EMBED, "x": jnp.ones(3)}, table="e", body="rest")
    assert labels == {"embed": {"embedding": "e"}, "x": "rest"}
