"""The cost of a training step: counted, and compiled for a TPU slice without one."""

import importlib.util
import math
import os
import re
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh

from examples.lm import Config
from examples.lm.errors import UserError
from examples.lm.mesh import use_mesh
from examples.lm.optimizer import table_state_bytes, with_table_optimizer
from examples.lm.program import make_model, make_program, table_rows

# Memory in bytes and bfloat16 flop/s of a device, which is a chip, or half of one of
# tpu7x: https://cloud.google.com/tpu/docs/v6e (v5e as well), /v5p and /tpu7x.
_TPUS = {
    "v5e": (16e9, 197e12),
    "v5p": (95e9, 459e12),
    "v6e": (32e9, 918e12),
    "tpu7x": (96e9, 1154e12),
}
_KINDS = {  # jax.Device.device_kind
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
# What libtpu would look for on a TPU machine. One type serves slices of all families.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-128",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process is refused
}


def flops(config: Config) -> float:
    """Returns the floating-point operations of a step, forward and backward.

    Six for each token and parameter that is multiplied, and those of causal attention.
    Recomputation is not counted.
    """
    model = config.model
    params = nnx.state(nnx.eval_shape(lambda: make_model(config)), nnx.Param)
    sizes = sum(x.size for x in jax.tree.leaves(params))
    if not model.tie_embeddings:  # lookups multiply nothing
        sizes -= table_rows(config) * model.width
    attention = 6 * model.layers * model.width * config.sequence_length
    return config.batch_size * config.sequence_length * (6 * sizes + attention)


def peak_flops(mesh: Mesh) -> float:
    """Returns the peak of all devices, infinity if it is not known."""
    kind = mesh.devices.flat[0].device_kind
    known = [peak for name, peak in _KINDS.items() if kind.startswith(name)]
    return mesh.size * known[-1] if known else math.inf


def devices(name: str) -> list[Any]:
    """Returns the devices of a TPU slice, for which programs can be compiled, not run.

    Args:
      name: family and shape, such as "v6e:4x4", "v5p:4x4x4" or "tpu7x:4x4x4".
    """
    if name.partition(":")[0] not in _TPUS:
        raise UserError(
            f"The topology is {name!r}, but must be one of the families"
            f" {', '.join(_TPUS)} and a shape: 'v5p:4x4x4'."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "The TPU compiler is missing: pip install 'jax[tpu]' on Linux on x86_64."
        )
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"libtpu does not know the topology {name!r}: {error}"
        ) from error


def report(config: Config) -> str:
    """Compiles a step for `config.cost_report_topology` and returns its cost."""
    name = config.cost_report_topology
    hbm, peak_rate = _TPUS.get(name.partition(":")[0], (0, 0))
    with use_mesh(config, devices(name)) as mesh:
        program = make_program(config, mesh)
        start = time.perf_counter()
        try:
            step = program.train_step.lower(program.state, program.tokens).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return (
                f"{name} DOES NOT FIT. {str(error).splitlines()[0]}\nUse more chips, a"
                " smaller --config.batch_size, more --config.accumulate_steps,"
                " --config.model.remat=full or more --config.loss_chunks."
            )
        seconds = time.perf_counter() - start
        params, memory = program.state.params, step.memory_analysis()
        tables = {
            arm: table_state_bytes(
                with_table_optimizer(config, arm), params, table_rows(config)
            )
            for arm in (config.tables.optimizer, "adam")
        }
    collectives = Counter(
        re.findall(
            r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
            r"(?:-start)?\(",
            step.as_text() or "",
        )
    )
    peak, work = memory.peak_memory_in_bytes, flops(config) / mesh.size
    rows = {
        "parameters": _readable(bytes_per_device(params)),
        "optimizer state": _readable(bytes_per_device(program.state.opt_state)),
        "temporaries, not all at once": _readable(memory.temp_size_in_bytes),
        "peak": f"{_readable(peak)} of {_readable(hbm)}:"
        + (" fits" if peak <= hbm else " DOES NOT FIT"),
        "work": f"{work / 1e12:,.1f} Tflop with attention, without recomputation",
        "time at 40% MFU": f"{1e3 * work / peak_rate / 0.4:,.0f} ms",
    }
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    tokens = config.batch_size * config.sequence_length
    return "\n".join(
        [
            f"{name}: {mesh.size} chips, {axes}",
            f"{count / 1e6:,.0f} million parameters, {tokens:,} tokens a step\n",
            "On each chip",
            *(f"  {label:<30}{value}" for label, value in rows.items()),
            "\nState of the token tables' optimizer, over all chips",
            *(f"  {arm:<30}{_readable(size)}" for arm, size in tables.items()),
            "\nCollectives in the program (those in a loop counted once)",
            *(f"  {op:<30}{n}" for op, n in sorted(collectives.items())),
            f"\nCompiled in {seconds:.0f} s",
        ]
    )


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes of an abstract tree's part on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )


def _readable(n: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n >= size:
            return f"{n / size:,.2f} {unit}"
    return f"{n / 1e3:,.2f} kB"
