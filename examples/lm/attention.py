"""Causal attention: JAX's own, cuDNN's on GPUs, and JAX's splash kernel on TPUs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax.core.spmd import get_pspec
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask,
)
from jax.sharding import Mesh

from examples.lm.errors import UserError

IMPLEMENTATIONS = ("plain", "cudnn", "splash")
_LANES = 128  # sequences are multiples of this in the kernel


def choose(name: str, mesh: Mesh, sequence_length: int, dtype: str) -> str:
    """Returns the implementation for the devices of a mesh.

    "auto" is splash on TPUs and plain elsewhere. cuDNN has not run on a GPU here, so
    it must be asked for.

    Raises:
      UserError: the kernel that is asked for cannot run there.
    """
    platform = mesh.devices.flat[0].platform
    fits = sequence_length % _LANES == 0
    if name == "auto":
        return "splash" if platform == "tpu" and fits else "plain"
    if name == "cudnn" and (platform != "gpu" or dtype != "bfloat16"):
        raise UserError(
            f"config.model.attention=cudnn needs GPUs and config.model.dtype=bfloat16,"
            f" but got {platform} and {dtype}: use auto."
        )
    if name == "splash" and not (platform == "tpu" and fits):
        raise UserError(
            "config.model.attention=splash needs TPUs and a multiple of"
            f" {_LANES} as sequence_length, but got {platform} and {sequence_length}:"
            " use auto."
        )
    return name


def attend(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str) -> jax.Array:
    """Returns causal attention, [batch, time, heads, size] like the queries.

    Args:
      q: queries.
      k: keys; the number of their heads divides that of the queries.
      v: values, like the keys.
      implementation: one of `IMPLEMENTATIONS`. "splash" needs a mesh in context.
    """
    if implementation == "splash":
        return splash(q, k, v)
    kind = "cudnn" if implementation == "cudnn" else "xla"
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kind)


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    block: int = 512,
    interpret: bool = False,
) -> jax.Array:
    """Runs the splash kernel on each device's own rows and heads.

    The kernel is not partitioned by XLA. Rows and heads are independent, so that no
    collective is needed inside.

    Args:
      q: queries, [batch, time, heads, size].
      k: keys, with as many heads or fewer.
      v: values, like the keys.
      segment_ids: int32[batch, time]; positions attend only within their segment.
      block: size of the blocks of queries and keys.
      interpret: run without a TPU, for tests.
    """
    batch, heads = (get_pspec((name,))[0] for name in ("batch", "heads"))
    spec, rows = jax.P(batch, heads, None, None), jax.P(batch, None)
    block = next(b for b in (block, 256, _LANES) if q.shape[1] % b == 0)
    sizes = splash_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )

    def local(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        n_heads, time = q.shape[1:3]
        mask = splash_mask.MultiHeadMask(
            [splash_mask.CausalMask((time, time))] * n_heads
        )
        kernel = splash_kernel.make_splash_mha(
            mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret
        )
        if segment_ids is None:
            return jax.vmap(kernel)(q, k, v)  # pyright: ignore[reportReturnType]
        segments = splash_kernel.SegmentIds(ids, ids)
        return jax.vmap(kernel)(q, k, v, segments)  # pyright: ignore[reportReturnType]

    ids = jnp.zeros(q.shape[:2], jnp.int32) if segment_ids is None else segment_ids
    q = q * jnp.array(q.shape[-1] ** -0.5, q.dtype)  # the kernel does not scale
    run: Callable[..., jax.Array] = jax.shard_map(
        local, in_specs=(spec, spec, spec, rows), out_specs=spec, check_vma=False
    )
    return run(*(x.swapaxes(1, 2) for x in (q, k, v)), ids).swapaxes(1, 2)
