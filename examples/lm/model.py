"""A decoder-only transformer: RMSNorm, rotary positions, SwiGLU, tied or untied head.

Every parameter names its logical axes; `AXIS_RULES` maps them to the axes of a device
mesh. With a mesh in context (`jax.set_mesh`) the parameters are created sharded, with
none they are plain arrays.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

AXIS_RULES = (
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("norm", None),
)
"""Logical axis of a parameter -> axis of the mesh, None for replicated."""


class Decoder(nnx.Module):
    """The language model: tokens to logits for the token after each.

    Args:
      vocab_size: rows of the token tables.
      width: size of the residual stream.
      layers: number of blocks.
      heads: attention heads in each block; `width / heads` must be even.
      mlp_width: hidden size of the gated MLP.
      tied: use the embedding as the head as well.
      dtype: type to compute in; parameters are float32 whatever it is.
      rngs: where initial values come from.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        tied: bool = False,
        dtype: DTypeLike = "float32",
        *,
        rngs: nnx.Rngs,
    ):
        dtype = jnp.dtype(dtype)
        table_init = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(
            vocab_size,
            width,
            dtype=dtype,
            embedding_init=table_init,
            embedding_metadata=_axes("vocab", "embed"),
            rngs=rngs,
        )
        self.layers = nnx.List(
            [Block(width, heads, mlp_width, dtype, rngs=rngs) for _ in range(layers)]
        )
        self.norm = _norm(width, dtype, rngs)
        if not tied:
            self.lm_head = nnx.Linear(
                width,
                vocab_size,
                use_bias=False,
                dtype=dtype,
                kernel_init=table_init,
                kernel_metadata=_axes("embed", "vocab"),
                rngs=rngs,
            )
        self.tied = tied

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps int32[batch, time] to float32[batch, time, vocab_size]."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        logits = self.embed.attend(x) if self.tied else self.lm_head(x)
        return logits.astype(jnp.float32)


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self, width: int, heads: int, mlp_width: int, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.attention_norm = _norm(width, dtype, rngs)
        self.attention = Attention(width, heads, dtype, rngs)
        self.mlp_norm = _norm(width, dtype, rngs)
        self.mlp = GatedMLP(width, mlp_width, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Attention(nnx.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, width: int, heads: int, dtype: DTypeLike, rngs: nnx.Rngs):
        if width % heads or width // heads % 2:
            raise ValueError(
                f"{heads} heads do not divide a width of {width} into even parts, which"
                " rotary positions need: change model.heads or model.width."
            )
        self.heads = heads
        self.q_proj = _linear(width, width, ("embed", "heads"), dtype, rngs)
        self.k_proj = _linear(width, width, ("embed", "heads"), dtype, rngs)
        self.v_proj = _linear(width, width, ("embed", "heads"), dtype, rngs)
        self.o_proj = _linear(width, width, ("heads", "embed"), dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        def split_heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.heads, -1)

        q = rotate(split_heads(self.q_proj(x)))
        k = rotate(split_heads(self.k_proj(x)))
        v = split_heads(self.v_proj(x))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.reshape(x.shape))


class GatedMLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, width: int, mlp_width: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.gate_proj = _linear(width, mlp_width, ("embed", "mlp"), dtype, rngs)
        self.up_proj = _linear(width, mlp_width, ("embed", "mlp"), dtype, rngs)
        self.down_proj = _linear(mlp_width, width, ("mlp", "embed"), dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


def rotate(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Encodes positions by rotating pairs of features of [batch, time, heads, size].

    The angles are float32 whatever the dtype of `x`, which cannot hold late positions.

    References:
      `RoFormer <https://arxiv.org/abs/2104.09864>`_, 2021
    """
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    position = jnp.arange(x.shape[1], dtype=jnp.float32)
    angle = (position[:, None] * frequency[None, :])[None, :, None, :]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.astype(x.dtype)


def _linear(
    size_in: int,
    size_out: int,
    axes: Sequence[str],
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    return nnx.Linear(
        size_in,
        size_out,
        use_bias=False,
        dtype=jnp.dtype(dtype),
        kernel_metadata=_axes(*axes),
        rngs=rngs,
    )


def _norm(width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(
        width, dtype=jnp.dtype(dtype), scale_metadata=_axes("norm"), rngs=rngs
    )


def _axes(*names: str) -> dict[str, Any]:
    """Metadata of a parameter: its logical axes, and whether there is a mesh now."""
    return {
        "out_sharding": names,
        "sharding_rules": AXIS_RULES,
        # Flax refuses to shard a parameter while no mesh is in context.
        "eager_sharding": not jax.sharding.get_abstract_mesh().empty,
    }
