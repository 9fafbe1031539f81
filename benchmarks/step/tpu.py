"""What the TPU compiler makes of a step: bytes accessed, estimated time.

    python -m benchmarks.step.tpu

Compiles for one device of each family, without a TPU (`pip install 'jax[tpu]'`);
nothing is run, so the numbers are exact, and times are the compiler's own estimates.
Every optimizer is behind clipping by the global norm, as people train; its step alone
is compiled as well. Writes benchmarks/step/tpu.json.
"""

import argparse
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding
from tqdm import tqdm

from benchmarks.common import store
from benchmarks.step import traffic
from benchmarks.step.compiling import (
    DTYPES,
    OPTIMIZERS,
    WITHOUT_MUON,
    bytes_of,
    clipped,
    compile_step,
    state_bytes,
)
from benchmarks.step.report import TPU
from examples.lm import topology

CHIPS = {
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
TABLES = [(50304, 768), (256128, 2048)]


def chip(family: str) -> SingleDeviceSharding:
    """Returns the sharding of arrays on one device, to compile for."""
    return SingleDeviceSharding(topology.devices(CHIPS[family])[0])


def measure_tables(family: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns what a step on one table takes: by table, dtype and optimizer."""
    measured: dict[str, Any] = {}
    for v, d in TABLES:
        by_dtype = measured[f"{v}x{d}"] = {}
        for dtype in DTYPES:
            table = jax.ShapeDtypeStruct((v, d), dtype, sharding=chip(family))
            by_dtype[dtype] = {name: measure(name, table) for name in WITHOUT_MUON}
    return measured


def measure(name: str, table: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Returns the `state_bytes` of an optimizer and what its step takes.

    Its step is compiled `alone` and `clipped`; of both the result has `temp_bytes`,
    `bytes_accessed_over_table` and the estimated `seconds`.
    """
    tx = OPTIMIZERS[name]()
    measured: dict[str, Any] = {"state_bytes": state_bytes(tx, table)}
    for how, optimizer in (("clipped", clipped(name, tx)), ("alone", tx)):
        step = compile_step(optimizer, table)
        seconds = step.cost_analysis().get("optimal_seconds", -1)
        accessed = traffic.bytes_accessed(step.as_text())
        measured[how] = {
            "temp_bytes": step.memory_analysis().temp_size_in_bytes,
            "bytes_accessed_over_table": accessed / bytes_of(table),
            # Negative where the compiler gives no estimate.
            "seconds": seconds if seconds > 0 else None,
        }
    return measured


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    measured: dict[str, Any] = {}
    for family in (progress := tqdm(CHIPS)):
        progress.set_description(family)
        measured[family] = measure_tables(family)
    store.write_object(TPU, {"measured": measured}, "libtpu")
    print(f"Wrote {TPU}")


if __name__ == "__main__":
    main()
