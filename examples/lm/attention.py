"""Causal attention by XLA, or by a kernel that never stores all pairs of positions."""

import math
from typing import Any, Literal

import jax
from flax.core.spmd import get_pspec
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from examples.lm.errors import UserError

Implementation = Literal["auto", "plain", "cudnn", "splash"]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    implementation: Implementation,
    segment_ids: jax.Array | None = None,
) -> jax.Array:
    """Computes causal attention.

    Args:
      q: queries, [batch, time, heads, size].
      k: keys, [batch, time, kv_heads, size], where `kv_heads` divides `heads`.
      v: values, like `k`.
      implementation: `"plain"` is XLA, `"splash"` JAX's kernel for TPUs, `"cudnn"` that
        of cuDNN for GPUs, which has not been run yet. `"auto"` chooses splash where the
        devices are TPUs and the shapes fit, plain elsewhere. Splash and `"auto"` read
        the mesh and the logical axis rules in context.
      segment_ids: int32[batch, time]. Positions attend only to positions with the same
        id, such as those of one document among several in a sequence.

    Returns:
      An array shaped like `q`.

    Raises:
      UserError: the implementation does not fit the devices or the shapes.
    """
    if implementation == "auto":
        implementation = "plain" if _obstacle("splash", q, k) else "splash"
    elif obstacle := _obstacle(implementation, q, k):
        raise UserError(
            f"model.attention is {implementation!r}, but {obstacle}: use 'auto'."
        )
    if implementation == "splash":
        return splash(q, k, v, segment_ids)
    mask = None
    if segment_ids is not None:
        mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    kernel = "cudnn" if implementation == "cudnn" else "xla"
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=True, implementation=kernel
    )


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Computes `attend` by the splash kernel; `interpret` emulates it on a CPU."""
    block = math.gcd(q.shape[1], 512)
    blocks = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv")
    block_sizes = splash_attention.BlockSizes(
        **dict.fromkeys(blocks, block), use_fused_bwd_kernel=True
    )

    def local(q, k, v, segment_ids):
        mask = splash_attention.CausalMask((q.shape[1], q.shape[1]))
        kernel = splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask([mask] * q.shape[2]),
            block_sizes=block_sizes,
            head_shards=1,  # shard_map has already divided the heads
            q_seq_shards=1,
            interpret=interpret,
        )
        if segment_ids is not None:
            segment_ids = splash_attention.SegmentIds(segment_ids, segment_ids)
        q = q * q.shape[-1] ** -0.5  # the kernel does not scale
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        y: Any = jax.vmap(kernel)(q, k, v, segment_ids)
        return y.swapaxes(1, 2)

    if jax.sharding.get_abstract_mesh().empty:
        return local(q, k, v, segment_ids)
    # A batch that does not divide, such as the sampler's one row, is replicated.
    batch = _mesh_axes("batch", q.shape[0])
    spec = PartitionSpec(batch, None, _mesh_axes("heads", k.shape[2]), None)
    # XLA cannot partition a kernel: without shard_map, each device would compute all.
    # The kernel does not declare the axes that its results vary over (check_vma).
    return jax.shard_map(
        local,
        in_specs=(spec, spec, spec, PartitionSpec(batch, None)),
        out_specs=spec,
        check_vma=False,
    )(q, k, v, segment_ids)


def _obstacle(implementation: str, q: jax.Array, k: jax.Array) -> str | None:
    """Says why an implementation cannot be used here, or returns None."""
    mesh = jax.sharding.get_abstract_mesh()
    # Of the mesh, which may be one to compile for, and not of this process.
    device = mesh.abstract_device
    platform = device.platform if device else jax.default_backend()
    if implementation == "cudnn":
        if platform not in ("gpu", "cuda"):
            return f"cuDNN runs on GPUs and this is a {platform.upper()}"
        if q.dtype != "bfloat16":
            return f"cuDNN does not attend in {q.dtype}, only in model.dtype=bfloat16"
    if implementation == "splash":
        if platform != "tpu":
            return f"its kernel runs on TPUs and this is a {platform.upper()}"
        if q.shape[1] % 128:
            return f"128 does not divide sequences of {q.shape[1]} positions"
        if not mesh.empty and _mesh_axes("heads", k.shape[2]) is None:
            return f"the mesh does not divide {k.shape[2]} heads of keys and values"
    return None


def _mesh_axes(name: str, size: int) -> tuple[str, ...] | None:
    """Returns the mesh axes of a logical axis, or None if `size` does not divide."""
    axes = get_pspec((name,))[0] or ()
    axes = (axes,) if isinstance(axes, str) else axes
    sizes = jax.sharding.get_abstract_mesh().shape
    return None if size % math.prod(sizes[axis] for axis in axes) else axes
