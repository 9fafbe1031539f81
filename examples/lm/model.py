"""A decoder-only transformer: RMSNorm, rotary positions, SwiGLU, tied or untied head.

Parameters and activations name their logical axes, which the rules in context
(`nnx.logical_axis_rules`) map to the axes of a device mesh. With a mesh in context
(`jax.set_mesh`) the parameters are created sharded, with none they are plain arrays.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core.spmd import get_pspec
from jax.typing import DTypeLike

Remat = Literal["none", "dots", "full"]

_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
REMATS = ("none", *_POLICIES)


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
      tied: use the embedding as the head as well.
      vocab_multiple: the tables have rows up to the next multiple of this, so that
        they can be sharded. Padding is never predicted.
      scan: keep the parameters of all blocks in stacked arrays and loop over them: a
        deep model compiles as fast as a shallow one.
      remat: what the backward pass computes again: `"none"`, everything but products
        with parameters (`"dots"`), or every block (`"full"`).
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
        kv_heads: int | None = None,
        rope_base: float = 10_000.0,
        tied: bool = False,
        vocab_multiple: int = 1,
        scan: bool = False,
        remat: Remat = "none",
        dtype: DTypeLike = "float32",
        *,
        rngs: nnx.Rngs,
    ):
        if remat not in REMATS:
            known = ", ".join(REMATS)
            raise ValueError(
                f"model.remat is {remat!r}, but it must be one of {known}."
            )
        dtype = jnp.dtype(dtype)
        self.vocab_size = vocab_size
        self.remat = remat
        self.tied = tied
        rows = math.ceil(vocab_size / vocab_multiple) * vocab_multiple
        table_init = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(
            rows,
            width,
            dtype=dtype,
            embedding_init=table_init,
            embedding_metadata=_axes("vocab", "table_width"),
            rngs=rngs,
        )

        def block(rngs: nnx.Rngs) -> Block:
            return Block(
                width, heads, kv_heads or heads, mlp_width, rope_base, dtype, rngs=rngs
            )

        if scan:
            stacked = nnx.vmap(block, transform_metadata=_LAYERS)
            self.layers = nnx.split_rngs(splits=layers)(stacked)(rngs)
        else:
            self.layers = nnx.List([block(rngs) for _ in range(layers)])
        self.norm = _norm(width, dtype, rngs)
        if not tied:
            self.lm_head = nnx.Linear(
                width,
                rows,
                use_bias=False,
                dtype=dtype,
                kernel_init=table_init,
                kernel_metadata=_axes("table_width", "vocab"),
                rngs=rngs,
            )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps int32[batch, time] to float32[batch, time, rows of the tables]."""
        return self.logits(self.hidden(tokens))

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """Maps int32[batch, time] to [batch, time, width], what the head reads."""
        # Gathered by width first: XLA has no cheap way from rows that are sharded by
        # width to activations that are sharded by batch.
        embedding = self.embed.embedding[...].astype(self.embed.dtype)
        x = jnp.take(constrain(embedding, "vocab", None), tokens, axis=0)
        return self.norm(self.blocks(constrain(x, "batch", None, None)))

    def blocks(self, x: jax.Array) -> jax.Array:
        """Applies all blocks to [batch, time, width]."""

        def apply(layer: Block, x: jax.Array) -> jax.Array:
            return constrain(layer(x), "batch", None, None)

        if self.remat != "none":
            apply = nnx.remat(apply, policy=_POLICIES[self.remat])
        if isinstance(self.layers, Block):
            loop = nnx.scan(
                apply,
                in_axes=(0, nnx.Carry),
                out_axes=nnx.Carry,
                transform_metadata=_LAYERS,
            )
            return loop(self.layers, x)
        for layer in self.layers:
            x = apply(layer, x)
        return x

    def logits(self, x: jax.Array) -> jax.Array:
        """Maps what `hidden` returns to float32 logits, -inf for padding."""
        logits = self.embed.attend(x) if self.tied else self.lm_head(x)
        logits = constrain(logits.astype(jnp.float32), "batch", None, "logits")
        if logits.shape[-1] == self.vocab_size:
            return logits
        ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        return jnp.where(ids < self.vocab_size, logits, -jnp.inf)


_LAYERS = {nnx.PARTITION_NAME: "layers"}


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        mlp_width: int,
        rope_base: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = _norm(width, dtype, rngs)
        self.attention = Attention(width, heads, kv_heads, rope_base, dtype, rngs)
        self.mlp_norm = _norm(width, dtype, rngs)
        self.mlp = GatedMLP(width, mlp_width, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and grouped queries."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        rope_base: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if width % heads or width // heads % 2:
            raise ValueError(
                f"{heads} heads do not divide a width of {width} into even parts, which"
                " rotary positions need: change model.heads or model.width."
            )
        if heads % kv_heads:
            raise ValueError(
                f"{kv_heads} heads of keys and values do not divide {heads} heads of"
                " queries: change model.kv_heads or model.heads."
            )
        self.rope_base = rope_base
        self.head_size = size = width // heads
        self.q_proj = _linear(width, heads * size, ("embed", "heads"), dtype, rngs)
        self.k_proj = _linear(width, kv_heads * size, ("embed", "heads"), dtype, rngs)
        self.v_proj = _linear(width, kv_heads * size, ("embed", "heads"), dtype, rngs)
        self.o_proj = _linear(heads * size, width, ("heads", "embed"), dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        def split_heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], -1, self.head_size)

        q = rotate(split_heads(self.q_proj(x)), self.rope_base)
        k = rotate(split_heads(self.k_proj(x)), self.rope_base)
        v = split_heads(self.v_proj(x))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.reshape(*x.shape[:-1], -1))


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


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the sharding of an activation by its logical axes, where there is a mesh.

    Left alone, XLA may shard activations as the parameters are, by width, and not by
    batch.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, get_pspec(axes))


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
        # Flax refuses to shard a parameter while no mesh is in context.
        "eager_sharding": not jax.sharding.get_abstract_mesh().empty,
    }
