"""A Llama of Hugging Face's layout in plain JAX, fast to compile and to run on a CPU.

Its layers are scanned, and only the places with a loss reach the head.
`tests/examples/test_post_training.py` holds its loss against tunix's model.
"""

# pyright: reportMissingImports=false

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

Params = dict[str, Any]
Array = jax.Array | np.ndarray


class Config(NamedTuple):
    """The numbers of `config.json` that its arrays do not tell."""

    heads: int
    kv_heads: int
    theta: float
    eps: float


def load(directory: Path, tied: bool = True) -> tuple[Config, Params]:
    """Loads a model; its tables are `embed` and `head`, or a tied `head` alone."""
    numbers = json.loads((directory / "config.json").read_text())
    config = Config(
        numbers["num_attention_heads"],
        numbers["num_key_value_heads"],
        numbers["rope_theta"],
        numbers["rms_norm_eps"],
    )
    raw = safetensors.numpy.load_file(directory / "model.safetensors")

    def stacked(name: str) -> np.ndarray:
        layers = range(numbers["num_hidden_layers"])
        return np.stack([raw[f"model.layers.{i}.{name}.weight"].T for i in layers])

    table = raw["model.embed_tokens.weight"]
    params = {
        "head": table,
        "norm": raw["model.norm.weight"],
        "layers": {
            "norm1": stacked("input_layernorm"),
            "norm2": stacked("post_attention_layernorm"),
            **{n: stacked(f"self_attn.{n}_proj") for n in "qkvo"},
            **{n: stacked(f"mlp.{n}_proj") for n in ("gate", "up", "down")},
        },
    }
    if not tied:
        params["embed"] = table.copy()
    return config, params


def losses(config: Config, params: Params, tokens: Array, places: Array) -> jax.Array:
    """Computes the losses [batch, n] of the tokens after `places` [batch, n]."""
    states = jnp.take_along_axis(
        hidden(config, params, tokens), places[..., None], axis=1
    )
    logits = states @ params["head"].T
    targets = jnp.take_along_axis(tokens, places + 1, axis=1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - target_logits


def hidden(config: Config, params: Params, tokens: Array) -> jax.Array:
    """Computes the final states [batch, time, width] of tokens [batch, time]."""
    batch, time = tokens.shape
    causal = jnp.tril(jnp.ones((time, time), bool))

    def layer(x: jax.Array, p: Params) -> tuple[jax.Array, None]:
        h = rms_norm(x, p["norm1"], config.eps)
        q = (h @ p["q"]).reshape(batch, time, config.heads, -1)
        k, v = ((h @ p[n]).reshape(batch, time, config.kv_heads, -1) for n in "kv")
        q, k = rope(q, config.theta), rope(k, config.theta)
        mixed = jax.nn.dot_product_attention(q, k, v, mask=causal)
        x = x + mixed.reshape(batch, time, -1) @ p["o"]
        h = rms_norm(x, p["norm2"], config.eps)
        return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"], None

    table = params.get("embed", params["head"])
    x, _ = jax.lax.scan(layer, table[tokens], params["layers"])
    return rms_norm(x, params["norm"], config.eps)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def rope(x: jax.Array, theta: float) -> jax.Array:
    """Rotates the halves of heads [batch, time, heads, head_dim]."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half) / half)
    angles = jnp.arange(x.shape[1])[:, None, None] * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
