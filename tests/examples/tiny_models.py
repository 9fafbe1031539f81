"""Tiny random models in Hugging Face's layout, for tests with tunix."""

import json
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from flax import nnx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
NUMBERS = {
    "vocab_size": 520,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
}
MORE = {"gemma3_text": {"sliding_window": 64, "query_pre_attn_scalar": 8}}


def write_tokenizer(directory: Path) -> None:
    """Writes a tokenizer of bytes with a chat template."""
    directory.mkdir(exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({x: i for i, x in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    tokenizer.add_special_tokens([AddedToken(x, normalized=False) for x in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|end|>", "pad_token": "<|end|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def write_model(directory: Path, model_type: str = "llama", **changes: object) -> Path:
    """Writes a random model of a family with its tokenizer."""
    from examples.post_training import models as hf

    write_tokenizer(directory)
    numbers = NUMBERS | MORE.get(model_type, {}) | changes | {"model_type": model_type}
    (directory / "config.json").write_text(json.dumps(numbers))
    family = hf.FAMILIES[model_type]

    def tensors() -> dict[str, jax.Array]:
        model = family.model(family.config(numbers), rngs=nnx.Rngs(0))
        return hf.hf_tensors(nnx.state(model, nnx.Param))

    # All random: tunix leaves matrices of zeros.
    rng = np.random.default_rng(0)
    values = {
        name: rng.normal(0.0 if x.ndim > 1 else 1.0, 0.1, x.shape).astype(np.float32)
        for name, x in jax.eval_shape(tensors).items()
    }
    safetensors.numpy.save_file(values, directory / "model.safetensors")
    return directory
