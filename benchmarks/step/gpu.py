"""Bytes accessed and memory of a step on an H100, compiled without a GPU.

    make bench-gpu-compiler

compiles ahead of time; nothing is run. XLA:GPU does not count bytes, so these are the
sizes of operands and results of the kernels, read from the HLO. Writes
benchmarks/step/gpu.json.
"""

import argparse
import importlib.util
import os
from pathlib import Path

from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.common import store
from benchmarks.step.aot import measure_tables
from benchmarks.step.report import GPU

TARGET = Path(__file__).with_name("h100.txtpb")  # the compiler's description of one
TABLES = [(50304, 768), (131072, 4096)]


def is_installed() -> bool:
    """Returns True if the compiler for GPUs is installed."""
    return importlib.util.find_spec("jax_cuda12_plugin") is not None


def h100() -> SingleDeviceSharding:
    """Returns the sharding of arrays on one H100, for ahead-of-time compilation."""
    # Autotuning would run kernels, which requires a GPU.
    os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=TARGET.read_text(), topology="1x1x1"
    )
    return SingleDeviceSharding(topology.devices[0])


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    measured = measure_tables(TABLES, h100())
    store.write_object(GPU, {"measured": measured}, "jax-cuda12-plugin")
    print(f"Wrote {GPU}")


if __name__ == "__main__":
    main()
