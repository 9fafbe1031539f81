"""A decoder-only transformer: RMSNorm, rotary positions, SwiGLU, tied or untied head.

Parameters and activations name their logical axes, which the rules in context
(`nnx.logical_axis_rules`) map to the axes of a device mesh. With a mesh in context
(`jax.set_mesh`) the parameters are created sharded, without one they are plain arrays.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core.spmd import get_pspec
from jax.typing import DTypeLike

from examples.lm.attention import attend

_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
REMATS = ("none", *_POLICIES)
_LAYERS = {nnx.PARTITION_NAME: "layers"}


class Decoder(nnx.Module):
    """The language model: tokens to logits for the token after each.

    Args:
      vocab_size: number of tokens.
      width: size of the residual stream.
      layers: number of blocks.
      heads: attention heads in each block; `width / heads` must be even.
      mlp_width: hidden size of the gated MLP.
      kv_heads: heads of keys and values, a divisor of `heads`; by default as many.
      rope_base: longest wavelength of the rotary positions, in radians.
      tie_embeddings: use the embedding as the head as well.
      qk_norm: normalize queries and keys of each head.
      embed_norm: normalize the embeddings of the tokens.
      embed_init_std: standard deviation of the embedding's initial values.
      head_init_std: standard deviation of the head's.
      pad_vocab_to_multiple_of: rows of the tables, so that they can be sharded. Padding
        is never predicted.
      scan_layers: stack the parameters of all blocks and loop over them: a deep model
        compiles as fast as a shallow one.
      remat: what the backward pass computes again: `"none"`, everything but products
        with parameters (`"dots"`), or every block (`"full"`).
      attention: one of `attention.IMPLEMENTATIONS`.
      dtype: type to compute in. Parameters are always float32.
      rngs: source of initial values.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        kv_heads: int | None = None,
        rope_base: float = 10_000.0,
        tie_embeddings: bool = False,
        qk_norm: bool = False,
        embed_norm: bool = False,
        embed_init_std: float = 0.02,
        head_init_std: float = 0.02,
        pad_vocab_to_multiple_of: int = 1,
        scan_layers: bool = False,
        remat: str = "none",
        attention: str = "plain",
        dtype: DTypeLike = "float32",
        *,
        rngs: nnx.Rngs,
    ):
        dtype = jnp.dtype(dtype)
        self.vocab_size = vocab_size
        self.remat = remat
        self.tie_embeddings = tie_embeddings
        rows = padded(vocab_size, pad_vocab_to_multiple_of)
        self.embed = nnx.Embed(
            rows,
            width,
            dtype=dtype,
            embedding_init=nnx.initializers.normal(embed_init_std),
            embedding_metadata=_axes("vocab", "table_width"),
            rngs=rngs,
        )
        self.embed_norm = _norm(width, dtype, rngs) if embed_norm else None

        def block(rngs: nnx.Rngs) -> Block:
            sizes = width, heads, kv_heads or heads, mlp_width
            return Block(*sizes, rope_base, qk_norm, attention, dtype, rngs=rngs)

        if scan_layers:
            stacked = nnx.vmap(block, transform_metadata=_LAYERS)
            self.layers = nnx.split_rngs(splits=layers)(stacked)(rngs)
        else:
            self.layers = nnx.List([block(rngs) for _ in range(layers)])
        self.norm = _norm(width, dtype, rngs)
        if not tie_embeddings:
            self.lm_head = nnx.Linear(
                width,
                rows,
                use_bias=False,
                dtype=dtype,
                kernel_init=nnx.initializers.normal(head_init_std),
                kernel_metadata=_axes("table_width", "vocab"),
                rngs=rngs,
            )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps int32[batch, time] to float32[batch, time, rows of the tables]."""
        return self.logits(self.hidden(tokens))

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """Maps int32[batch, time] to [batch, time, width], which the head reads."""
        # Gather the width first: XLA has no cheap way from rows that are sharded by
        # width to activations that are sharded by batch.
        embedding = self.embed.embedding[...].astype(self.embed.dtype)
        x = jnp.take(constrain(embedding, "vocab", None), tokens, axis=0)
        if self.embed_norm:
            x = self.embed_norm(x)
        return self.norm(self.blocks(constrain(x, "batch", None, None)))

    def blocks(self, x: jax.Array) -> jax.Array:
        """Applies all blocks to [batch, time, width]."""

        def apply(layer: Block, x: jax.Array) -> jax.Array:
            return constrain(layer(x), "batch", None, None)

        if self.remat != "none":
            apply = nnx.remat(apply, policy=_POLICIES[self.remat])
        if isinstance(self.layers, Block):
            axes = {"in_axes": (0, nnx.Carry), "out_axes": nnx.Carry}
            return nnx.scan(apply, **axes, transform_metadata=_LAYERS)(self.layers, x)
        for layer in self.layers:
            x = apply(layer, x)
        return x

    def logits(self, x: jax.Array) -> jax.Array:
        """Maps the result of `hidden` to float32 logits, -inf for padding."""
        logits = self.embed.attend(x) if self.tie_embeddings else self.lm_head(x)
        logits = constrain(logits.astype(jnp.float32), "batch", None, "logits")
        if logits.shape[-1] == self.vocab_size:
            return logits
        ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        return jnp.where(ids < self.vocab_size, logits, -jnp.inf)


class Block(nnx.Module):
    """Attention and SwiGLU, each behind a norm and added to the residual stream."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        mlp_width: int,
        rope_base: float,
        qk_norm: bool,
        attention: str,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def linear(size_in: int, size_out: int, *axes: str) -> nnx.Linear:
            return nnx.Linear(
                size_in,
                size_out,
                use_bias=False,
                dtype=dtype,
                kernel_metadata=_axes(*axes),
                rngs=rngs,
            )

        self.head_size = size = width // heads
        self.rope_base = rope_base
        self.attention = attention
        self.attention_norm = _norm(width, dtype, rngs)
        self.q_proj = linear(width, heads * size, "embed", "heads")
        self.k_proj = linear(width, kv_heads * size, "embed", "heads")
        self.v_proj = linear(width, kv_heads * size, "embed", "heads")
        self.o_proj = linear(heads * size, width, "heads", "embed")
        self.q_norm = _norm(size, dtype, rngs) if qk_norm else None
        self.k_norm = _norm(size, dtype, rngs) if qk_norm else None
        self.mlp_norm = _norm(width, dtype, rngs)
        self.gate_proj = linear(width, mlp_width, "embed", "mlp")
        self.up_proj = linear(width, mlp_width, "embed", "mlp")
        self.down_proj = linear(mlp_width, width, "mlp", "embed")

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self._attend(self.attention_norm(x))
        y = self.mlp_norm(x)
        return x + self.down_proj(jax.nn.silu(self.gate_proj(y)) * self.up_proj(y))

    def _attend(self, x: jax.Array) -> jax.Array:
        def split_heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], -1, self.head_size)

        q, k = split_heads(self.q_proj(x)), split_heads(self.k_proj(x))
        if self.q_norm and self.k_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, self.rope_base), rotate(k, self.rope_base)
        y = attend(q, k, split_heads(self.v_proj(x)), self.attention)
        return self.o_proj(y.reshape(*x.shape[:-1], -1))


def rotate(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Encodes positions by rotating pairs of features of [batch, time, heads, size].

    The angles are always float32: bfloat16 cannot represent late positions.

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


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the sharding of an activation by its logical axes if there is a mesh.

    Otherwise XLA may shard activations like the parameters, by width instead of batch.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, get_pspec(axes))


def padded(vocab_size: int, multiple: int) -> int:
    """Returns the number of rows of the tables."""
    return math.ceil(vocab_size / multiple) * multiple


def _norm(width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, dtype=dtype, scale_metadata=_axes("norm"), rngs=rngs)


def _axes(*names: str) -> dict[str, Any]:
    """Returns the metadata of a parameter with these logical axes."""
    return {
        "out_sharding": names,
        # Flax refuses to shard a parameter while no mesh is in context.
        "eager_sharding": not jax.sharding.get_abstract_mesh().empty,
    }
