"""Operations of a training step, and its memory and collectives on a TPU slice."""

import importlib.util
import math
import os
import re
from collections import Counter
from typing import Any

import jax
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh

from examples.lm import Config
from examples.lm.errors import UserError
from examples.lm.mesh import use_mesh
from examples.lm.optimizer import table_state_bytes, with_table_optimizer
from examples.lm.program import make_model, make_program, table_rows

# bfloat16 FLOP/s by the start of `jax.Device.device_kind`, and bytes of memory. A
# device is a chip, or half a chip of tpu7x: https://cloud.google.com/tpu/docs/v6e
# (also v5e), /v5p and /tpu7x.
_PEAK_FLOPS = {
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
_MEMORY = {"v5e": 16e9, "v5p": 95e9, "v6e": 32e9, "tpu7x": 96e9}
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


def report(config: Config) -> str:
    """Compiles a step for `config.cost_report_topology` and describes its cost."""
    name = config.cost_report_topology
    with use_mesh(config, tpu_devices(name)) as mesh:
        program = make_program(config, mesh)
        try:
            compiled = program.train_step.lower(program.state, program.tokens).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return f"{name} DOES NOT FIT. {str(error).splitlines()[0]}"
    params, opt_state = program.state
    stats: Any = compiled.memory_analysis()
    memory, peak = _MEMORY[name.partition(":")[0]], stats.peak_memory_in_bytes
    seconds = flops(config, recomputed=True) / peak_flops(mesh)
    collectives = _collectives(compiled.as_text() or "")
    rows = table_rows(config)
    tables = [
        f"{table_state_bytes(arm, params, rows) / 1e6:,.2f} MB with {optimizer}"
        for optimizer in ("ember", "adam")
        for arm in [with_table_optimizer(config, optimizer)]
    ]
    return "\n".join(
        [
            f"{name}: {mesh.size} devices, "
            + ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
            "\nOn each device",
            f"  parameters       {bytes_per_device(params) / 1e6:12,.2f} MB",
            f"  optimizer state  {bytes_per_device(opt_state) / 1e6:12,.2f} MB",
            f"  peak of all      {peak / 1e6:12,.2f} MB of {memory / 1e9:.0f} GB: "
            + ("fits" if peak <= memory else "DOES NOT FIT"),
            "\nCollectives, counted once in a loop: "
            + (", ".join(f"{n} {op}" for op, n in collectives.items()) or "none"),
            f"Time of the products alone: at least {1e3 * seconds:,.2f} ms a step",
            f"State of the tables on all devices: {', '.join(tables)}",
        ]
    )


def tpu_devices(name: str) -> list[Any]:
    """Returns the devices of a slice such as "v5p:4x4x4", to compile for.

    Raises:
      UserError: libtpu, which contains the compiler, is missing or has no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "The TPU compiler is missing: on Linux on x86-64, install it with"
            " `pip install 'jax[tpu]'`."
        )
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        if name.partition(":")[0] not in _MEMORY:
            raise ValueError(f"{name} has another family")
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise UserError(
            f"The topology is {name!r}, but must be one of the families"
            f" {', '.join(_MEMORY)} and a shape, such as 'v5p:4x4x4' ({error})."
        ) from error


def peak_flops(mesh: Mesh) -> float:
    """Returns the peak FLOP/s of all devices, infinity if it is not known."""
    kind = mesh.devices.flat[0].device_kind
    known = [peak for name, peak in _PEAK_FLOPS.items() if kind.startswith(name)]
    return mesh.size * known[0] if known else math.inf


def flops(config: Config, *, recomputed: bool) -> float:
    """Returns the operations of the products in a step.

    Args:
      config: the config of the run.
      recomputed: include what the backward pass computes again; MFU does not.
    """
    model = config.model
    params = nnx.state(nnx.eval_shape(lambda: make_model(config)), nnx.Param)
    table = table_rows(config) * model.width
    tables = table if model.tie_embeddings else 2 * table
    weights = sum(x.size for x in jax.tree.leaves(params)) - tables
    # Attention has two products, of each position with half of all positions.
    weights += model.layers * config.sequence_length * model.width
    # The backward pass has two products for each one of the forward pass.
    blocks = 4 if recomputed and model.remat == "full" else 3
    head = 4 if recomputed and config.loss_chunks > 1 else 3
    tokens = config.batch_size * config.sequence_length
    return 2 * tokens * (blocks * weights + head * table)


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
