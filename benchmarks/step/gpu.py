"""Bytes accessed and memory of a step on an H100, compiled without a GPU.

    make bench-gpu-compiler

compiles ahead of time; nothing is run. XLA:GPU does not count bytes, so these are the
sizes of operands and results of the kernels, read from the HLO. Writes
benchmarks/step/gpu.json.
"""

from benchmarks.common import store
from benchmarks.common.command import make_parser
from benchmarks.step.aot import measure_tables
from benchmarks.step.report import GPU
from tests.compiling import h100

TABLES = [(50304, 768), (131072, 4096)]


def main() -> None:
    make_parser(__doc__).parse_args()
    measured = measure_tables(TABLES, h100())
    store.write_object(GPU, {"measured": measured}, "jax-cuda12-plugin")
    print(f"Wrote {GPU}")


if __name__ == "__main__":
    main()
