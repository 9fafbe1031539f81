"""Cost of a training step on a TPU slice, compiled on a machine without TPUs."""

import importlib.util
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies

from examples.lm.errors import UserError

# Memory and bfloat16 FLOP/s of a device, which is a chip, or half a chip of tpu7x;
# https://cloud.google.com/tpu/docs/v6e (also v5e), /v5p and /tpu7x.
_FAMILIES = {
    "v5e": (16e9, 197e12),
    "v5p": (95e9, 459e12),
    "v6e": (32e9, 918e12),
    "tpu7x": (96e9, 1153e12),
}
_PEAKS = {  # bfloat16 FLOP/s by the start of `jax.Device.device_kind`
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
# libtpu reads these on a TPU machine. One type serves slices of all families.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-128",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # otherwise a second process is refused
}
_COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)
# A TPU repeats an asynchronous collective in the fusions that continue and end it.
_REPEATED = re.compile(r'"async_collective_fusion_config":{"flag_start":"\d')


class Repeated(NamedTuple):
    """Body of a loop, which the compiler's counts of a step include once."""

    more: int  # further times that it runs
    compiled: jax.stages.Compiled


class Cost(NamedTuple):
    """Cost of a step on each device; None where the compiler gives no number.

    The compiler counts a kernel as no work: see `attention_flops`.
    """

    peak_bytes: int
    temp_bytes: int  # not all allocated at the same time
    flops: float | None
    bytes_accessed: float | None
    seconds: float | None
    collectives: dict[str, int]  # number by kind, in the body of a loop once
    kernels: int  # number, in the body of a loop once


def peak_flops(devices: Sequence[Any]) -> float:
    """Returns the peak FLOP/s of all devices, infinity if it is not known."""
    kind = devices[0].device_kind
    known = [peak for name, peak in _PEAKS.items() if kind.startswith(name)]
    return len(devices) * known[0] if known else math.inf


def tpu_devices(name: str) -> list[Any]:
    """Returns the devices of a slice such as "v5p:4x4x4", to compile for.

    Raises:
      UserError: libtpu, which contains the compiler, is missing or has no such slice.
    """
    if name.partition(":")[0] not in _FAMILIES:
        raise UserError(
            f"The topology is {name!r}, but it must be one of the families"
            f" {', '.join(_FAMILIES)} and a shape, such as 'v5p:4x4x4'."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "The TPU compiler is missing: on Linux on x86-64, install it with"
            " `pip install 'jax[tpu]'`."
        )
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"The topology is {name!r}, but libtpu knows no such slice ({error})."
        ) from error


def measure(compiled: jax.stages.Compiled, repeated: Sequence[Repeated] = ()) -> Cost:
    """Reads the cost of a compiled step, in which the bodies of loops are repeated."""

    def count(name: str) -> float | None:
        parts = [Repeated(1, compiled), *repeated]
        counts = [(part.compiled.cost_analysis() or {}).get(name, 0) for part in parts]
        if min(counts) <= 0:
            return None
        return sum(part.more * n for part, n in zip(parts, counts, strict=True))

    memory: Any = compiled.memory_analysis()
    hlo = compiled.as_text() or ""
    return Cost(
        memory.peak_memory_in_bytes,
        memory.temp_size_in_bytes,
        count("flops"),
        count("bytes accessed"),
        count("optimal_seconds"),
        _collectives(hlo),
        hlo.count('custom_call_target="tpu_custom_call"'),
    )


def compile_repeated(
    graph: Any,
    params: Any,
    x: jax.ShapeDtypeStruct,
    loss: Callable[[Any, jax.Array, jax.Array], jax.Array],
    *,
    scanned_layers: int,
    loss_chunks: int,
) -> list[Repeated]:
    """Compiles what a step of a `Decoder` loops over, forward and backward.

    Args:
      graph: the model's definition, from `nnx.split`.
      params: its abstract parameters with shardings, as a nested dict.
      x: abstract activations with sharding, [batch, time, width].
      loss: maps model, activations and int32[batch, time] targets to float32[].
      scanned_layers: number of blocks in a loop, 0 without a loop.
      loss_chunks: number of parts of the time axis in the loop of the loss.
    """

    def compile_body(
        function: Callable[..., jax.Array], name: str, inputs: Any, gradient: Any
    ) -> jax.stages.Compiled:
        def passes(inputs: Any, others: Any, rest: Any, gradient: Any) -> Any:
            def forward(piece: Any, x: jax.Array) -> jax.Array:
                model = nnx.merge(graph, others | {name: piece})
                return function(model, x, *rest)

            return jax.vjp(forward, *inputs)[1](gradient)

        args = inputs[:2], params, inputs[2:], gradient
        shardings = jax.tree.map(lambda x: x.sharding, inputs[:2])
        return jax.jit(passes, out_shardings=shardings).lower(*args).compile()

    def abstract(shape: Any, dtype: Any, like: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=like.sharding)

    repeated = []
    if scanned_layers > 1:
        one = jax.tree.map(
            lambda p: abstract((1, *p.shape[1:]), p.dtype, p), params["layers"]
        )
        body = compile_body(lambda model, x: model.blocks(x), "layers", (one, x), x)
        repeated.append(Repeated(scanned_layers - 1, body))
    if loss_chunks > 1:
        head = "lm_head" if "lm_head" in params else "embed"
        shape = x.shape[0], x.shape[1] // loss_chunks
        part = abstract((*shape, x.shape[2]), x.dtype, x)
        inputs = params[head], part, abstract(shape, jnp.int32, x)
        body = compile_body(loss, head, inputs, jax.ShapeDtypeStruct((), jnp.float32))
        repeated.append(Repeated(loss_chunks - 1, body))
    return repeated


def attention_flops(
    batch: int, length: int, heads: int, head_size: int, layers: int, *, remat: bool
) -> float:
    """Returns the operations of a step's causal attention, forward and backward.

    `remat` is True for every `model.remat` except "none".
    """
    # Two products over half of all pairs of positions. The backward pass has five, and
    # with remat it starts with the forward pass.
    forward = 2 * batch * length**2 * heads * head_size
    return layers * forward * (4.5 if remat else 3.5)


def report(
    topology: str,
    step: Any,
    args: Sequence[Any],
    *,
    state: Mapping[str, Any],
    repeated: Callable[[], Sequence[Repeated]] = list,
    kernel_flops: float,
) -> str:
    """Compiles a step for a slice and describes its cost.

    Args:
      topology: name of the slice.
      step: the jitted step, with a mesh of `tpu_devices` in context.
      args: its abstract arguments, with shardings.
      state: abstract trees by label, whose sizes to report.
      repeated: compiles the bodies of the step's loops.
      kernel_flops: `attention_flops`, reported if the step has kernels.
    """
    hbm, peak_flops = _FAMILIES[topology.partition(":")[0]]
    mesh = jax.tree.leaves(args)[0].sharding.mesh
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    start = time.perf_counter()
    try:
        compiled = step.lower(*args).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return f"{topology} DOES NOT FIT. {str(error).splitlines()[0]}"
    seconds = time.perf_counter() - start
    cost = measure(compiled, repeated())
    fits = "fits" if cost.peak_bytes <= hbm else "DOES NOT FIT"
    rows = {label: bytes_per_device(tree) for label, tree in state.items()}
    rows |= {"temporaries, not all at once": cost.temp_bytes}
    lines = [
        f"{topology}: {mesh.size} devices, {axes}",
        "\nOn each device",
        *(f"  {label:<34}{_readable(n):>12}" for label, n in rows.items()),
        f"  {'peak of all':<34}{_readable(cost.peak_bytes):>12}"
        f" of {hbm / 1e9:.0f} GB: {fits}",
        "\nCollectives, counted once in a loop: "
        + (", ".join(f"{n} {op}" for op, n in cost.collectives.items()) or "none"),
        "Estimated by the compiler: "
        + (f"{1e3 * cost.seconds:,.2f} ms a step" if cost.seconds else "nothing"),
    ]
    if cost.kernels:
        per_device = kernel_flops / mesh.size
        lines.append(
            f"Attention, not in the estimate: {per_device / 1e12:,.2f} TFLOP, at least"
            f" {1e3 * per_device / peak_flops:,.2f} ms"
        )
    return "\n".join([*lines, f"Compiled in {seconds:.0f} s"])


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes on each device of a tree with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def _collectives(hlo: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    computation = ""
    for line in hlo.splitlines():
        if line.endswith("{"):
            computation = line
        if (match := _COLLECTIVE.search(line)) and not _REPEATED.search(line):
            # A TPU fuses a reduce-scatter of an all-reduce and a slice.
            fused = "all-reduce-scatter" in computation
            found["reduce-scatter" if fused else match[1]] += 1
    return dict(sorted(found.items()))


def _readable(n: float) -> str:
    unit, size = next(
        ((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if n >= s), ("kB", 1e3)
    )
    return f"{n / size:,.2f} {unit}"
