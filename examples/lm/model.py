"""A decoder-only transformer: RMSNorm, rotary positions, SwiGLU, tied or untied head.

Parameters and activations name their logical axes. The rules in context
(`nnx.logical_axis_rules`) map these to axes of the device mesh in context
(`jax.set_mesh`), over which parameters are created sharded. Without a mesh they are
plain arrays.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core.spmd import get_pspec
from jax.typing import DTypeLike

from examples.lm.attention import Implementation, attend

Remat = Literal["none", "dots", "full"]
Ids = jax.Array | None

_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
_STACKED = {nnx.PARTITION_NAME: "layers"}


class Decoder(nnx.Module):
    """Language model: maps tokens to the logits of the next tokens."""

    def __init__(
        self,
        vocab_size: int,
        width: int,  # of the residual stream
        layers: int,
        heads: int,  # width / heads must be even
        mlp_width: int,
        kv_heads: int | None = None,  # a divisor of heads, by default as many
        rope_base: float = 10_000.0,  # longest wavelength of positions, in radians
        tie_embeddings: bool = False,  # use the embedding as the head as well
        pad_vocab_to_multiple_of: int = 1,  # so that devices can divide the tables
        scan_layers: bool = False,  # stack the blocks: compiles as fast as one block
        remat: Remat = "none",  # or recompute all but products with parameters, or all
        dtype: DTypeLike = "float32",  # to compute in; parameters are float32
        qk_norm: bool = False,  # RMSNorm of the queries and keys of each head
        embed_norm: bool = True,  # RMSNorm of the embedded tokens
        embed_init: float | None = None,  # standard deviation; 1, or 0.02 if tied
        head_init: float = 0.0,
        attention: Implementation = "plain",
        *,
        rngs: nnx.Rngs,
    ):
        dtype = jnp.dtype(dtype)
        self.vocab_size = vocab_size
        self.remat = remat
        if embed_init is None:
            embed_init = 0.02 if tie_embeddings else 1.0
        multiple = pad_vocab_to_multiple_of
        rows = math.ceil(vocab_size / multiple) * multiple
        self.embed = nnx.Embed(
            rows,
            width,
            dtype=dtype,
            embedding_init=nnx.initializers.normal(embed_init),
            embedding_metadata=_axes("vocab", "table_width"),
            rngs=rngs,
        )

        def block(rngs: nnx.Rngs) -> Block:
            return Block(
                width,
                mlp_width,
                dtype,
                rngs,
                heads=heads,
                kv_heads=kv_heads or heads,
                rope_base=rope_base,
                qk_norm=qk_norm,
                implementation=attention,
            )

        if scan_layers:
            stacked = nnx.vmap(block, transform_metadata=_STACKED)
            self.layers = nnx.split_rngs(splits=layers)(stacked)(rngs)
        else:
            self.layers = nnx.List([block(rngs) for _ in range(layers)])
        self.norm = _norm(width, dtype, rngs)
        if tie_embeddings:
            self.lm_head = None
        else:
            init, axes = nnx.initializers.normal(head_init), ("table_width", "vocab")
            self.lm_head = _linear(width, rows, axes, dtype, rngs, kernel_init=init)
        self.embed_norm = _norm(width, dtype, rngs) if embed_norm else None

    def __call__(self, tokens: jax.Array, segment_ids: Ids = None) -> jax.Array:
        """Maps int32[batch, time] to float32[batch, time, rows of the tables].

        Tokens attend only to tokens with the same int32[batch, time] `segment_ids`.
        """
        return self.logits(self.hidden(tokens, segment_ids))

    def hidden(self, tokens: jax.Array, segment_ids: Ids = None) -> jax.Array:
        """Maps int32[batch, time] to [batch, time, width], the input of the head."""
        # The embedding is gathered by width first. XLA has no cheap way from rows that
        # are sharded by width to activations that are sharded by batch.
        embedding = self.embed.embedding[...].astype(self.embed.dtype)
        x = jnp.take(constrain(embedding, "vocab", None), tokens, axis=0)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        x = constrain(x, "batch", None, None)
        return self.norm(self.blocks(x, segment_ids))

    def blocks(self, x: jax.Array, segment_ids: Ids = None) -> jax.Array:
        """Applies all blocks to [batch, time, width]."""

        def apply(layer: Block, x: jax.Array) -> jax.Array:
            return constrain(layer(x, segment_ids), "batch", None, None)

        if self.remat != "none":
            apply = nnx.remat(apply, policy=_POLICIES[self.remat])
        if isinstance(self.layers, Block):
            loop = nnx.scan(
                apply,
                in_axes=(0, nnx.Carry),
                out_axes=nnx.Carry,
                transform_metadata=_STACKED,
            )
            return loop(self.layers, x)
        for layer in self.layers:
            x = apply(layer, x)
        return x

    def logits(self, x: jax.Array) -> jax.Array:
        """Maps the result of `hidden` to float32 logits, -inf for padding."""
        logits = self.lm_head(x) if self.lm_head else self.embed.attend(x)
        logits = constrain(logits.astype(jnp.float32), "batch", None, "logits")
        if logits.shape[-1] == self.vocab_size:
            return logits
        ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        return jnp.where(ids < self.vocab_size, logits, -jnp.inf)


class Block(nnx.Module):
    """Attention and MLP, each applied to normalized input and added to the stream."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        **attention: Any,
    ):
        self.attention_norm = _norm(width, dtype, rngs)
        self.attention = Attention(width, dtype, rngs, **attention)
        self.mlp_norm = _norm(width, dtype, rngs)
        self.mlp = GatedMLP(width, mlp_width, dtype, rngs)

    def __call__(self, x: jax.Array, segment_ids: Ids = None) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), segment_ids)
        return x + self.mlp(self.mlp_norm(x))


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and grouped queries."""

    def __init__(
        self,
        width: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        *,
        heads: int,
        kv_heads: int,
        rope_base: float,
        qk_norm: bool,
        implementation: Implementation,
    ):
        self.rope_base = rope_base
        self.implementation: Implementation = implementation
        self.head_size = size = width // heads
        self.q_proj = _linear(width, heads * size, ("embed", "heads"), dtype, rngs)
        self.k_proj = _linear(width, kv_heads * size, ("embed", "heads"), dtype, rngs)
        self.v_proj = _linear(width, kv_heads * size, ("embed", "heads"), dtype, rngs)
        self.o_proj = _linear(heads * size, width, ("heads", "embed"), dtype, rngs)
        self.q_norm = _norm(size, dtype, rngs) if qk_norm else None
        self.k_norm = _norm(size, dtype, rngs) if qk_norm else None

    def __call__(self, x: jax.Array, segment_ids: Ids = None) -> jax.Array:
        q, k, v = (
            project(x).reshape(*x.shape[:-1], -1, self.head_size)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        # Rotations depend on distances alone, which packing leaves as they are.
        q, k = rotate(q, self.rope_base), rotate(k, self.rope_base)
        y = attend(q, k, v, implementation=self.implementation, segment_ids=segment_ids)
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

    Angles are float32 for every dtype of `x`: bfloat16 cannot hold late positions.

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
    """Pins the sharding of an activation by its logical axes, if there is a mesh.

    XLA may otherwise shard activations by width, as parameters are, and not by batch.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, get_pspec(axes))


def _linear(
    size_in: int,
    size_out: int,
    axes: tuple[str, str],
    dtype: DTypeLike,
    rngs: nnx.Rngs,
    **settings: Any,
) -> nnx.Linear:
    settings |= {"use_bias": False, "dtype": dtype, "kernel_metadata": _axes(*axes)}
    return nnx.Linear(size_in, size_out, **settings, rngs=rngs)


def _norm(width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, dtype=dtype, scale_metadata=_axes("norm"), rngs=rngs)


def _axes(*names: str) -> dict[str, Any]:
    """Metadata of a parameter: its logical axes."""
    return {
        "out_sharding": names,
        # Flax refuses to shard a parameter when there is no mesh in context.
        "eager_sharding": not jax.sharding.get_abstract_mesh().empty,
    }
