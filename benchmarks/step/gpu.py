"""What XLA:GPU makes of a step for an H100, without a GPU: bytes accessed, memory.

    make bench-gpu-compiler

compiles ahead of time; nothing is run. XLA:GPU counts no bytes, so these are the sizes
of operands and results of the kernels, read from the HLO. Writes
benchmarks/step/gpu.json.
"""

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from tqdm import tqdm

from benchmarks.common import store
from benchmarks.step.compiling import (
    DTYPES,
    OPTIMIZERS,
    WITHOUT_MUON,
    bytes_of,
    clipped,
    compile_step,
    state_bytes,
)
from benchmarks.step.report import GPU
from benchmarks.step.traffic import bytes_accessed

TARGET = Path(__file__).with_name("h100.txtpb")  # what the compiler has to know of one
TABLES = [(50304, 768), (131072, 4096)]


def is_installed() -> bool:
    """Whether the compiler for GPUs is there."""
    return importlib.util.find_spec("jax_cuda12_plugin") is not None


def h100() -> SingleDeviceSharding:
    """Returns the sharding of arrays on one H100, to compile for."""
    # The compiler would try kernels out, for which it needs a GPU.
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=TARGET.read_text(), topology="1x1x1"
    )
    return SingleDeviceSharding(topology.devices[0])


def measure(name: str, table: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Returns the `state_bytes` of an optimizer and what its step takes.

    Its step is compiled `alone` and `clipped`, with `temp_bytes`, `peak_bytes` and
    `bytes_accessed_over_table` for both.
    """
    tx = OPTIMIZERS[name]()
    measured: dict[str, Any] = {"state_bytes": state_bytes(tx, table)}
    for how, optimizer in (("clipped", clipped(name, tx)), ("alone", tx)):
        step = compile_step(optimizer, table)
        memory = step.memory_analysis()
        measured[how] = {
            "temp_bytes": memory.temp_size_in_bytes,
            "peak_bytes": memory.peak_memory_in_bytes,
            "bytes_accessed_over_table": bytes_accessed(step.as_text())
            / bytes_of(table),
        }
    return measured


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    sharding = h100()
    measured: dict[str, Any] = {}
    cases = [(shape, dtype) for shape in TABLES for dtype in DTYPES]
    for (v, d), dtype in (progress := tqdm(cases)):
        progress.set_description(f"{v} x {d}, {dtype}")
        table = jax.ShapeDtypeStruct((v, d), dtype, sharding=sharding)
        by_name = {name: measure(name, table) for name in WITHOUT_MUON}
        measured.setdefault(f"{v}x{d}", {})[dtype] = by_name
    store.write_object(GPU, {"measured": measured}, "jax-cuda12-plugin")
    print(f"Wrote {GPU}")


if __name__ == "__main__":
    main()
