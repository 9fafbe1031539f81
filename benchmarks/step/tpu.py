"""Bytes accessed and estimated time of a step on TPUs, compiled without a TPU.

    python -m benchmarks.step.tpu

Compiles for one device of each family, without a TPU (`pip install 'jax[tpu]'`);
nothing is run, so the numbers are exact, and times are the compiler's own estimates.
Every step is compiled with clipping by the global norm, and alone. Writes
benchmarks/step/tpu.json.
"""

from tqdm import tqdm

from benchmarks.common import store
from benchmarks.common.command import make_parser
from benchmarks.step.aot import measure_tables
from benchmarks.step.report import TPU
from tests.compiling import CHIPS, chip

TABLES = [(50304, 768), (256128, 2048)]


def main() -> None:
    make_parser(__doc__).parse_args()
    measured = {}
    for family in (progress := tqdm(CHIPS)):
        progress.set_description(family)
        measured[family] = measure_tables(TABLES, chip(family))
    store.write_object(TPU, {"measured": measured}, "libtpu")
    print(f"Wrote {TPU}")


if __name__ == "__main__":
    main()
