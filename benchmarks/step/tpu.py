"""What the TPU compiler makes of a step: bytes accessed, estimated time, peak memory.

    python -m benchmarks.step.tpu

Compiles for one chip of each family, without a TPU (`pip install 'jax[tpu]'`);
nothing is run, so the numbers are exact, and times are the compiler's own estimates.
Writes benchmarks/step/tpu.json.
"""

import argparse
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding
from tqdm import tqdm

from benchmarks.common import store
from benchmarks.step.compiling import DTYPES, OPTIMIZERS, compile_step, sizes
from benchmarks.step.report import TPU
from benchmarks.step.training import compile_training_step
from examples.lm import topology

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
TABLES = [(50304, 768), (256128, 2048)]
# A step of Muon is its matrix products; the compiler takes minutes over them.
COMPARED = {name: make for name, make in OPTIMIZERS.items() if name != "Muon"}
IN_TRAINING = ("SGD", "Ember", "Adam")


def chip(family: str) -> SingleDeviceSharding:
    """Returns the sharding of arrays on one chip, to compile for."""
    return SingleDeviceSharding(topology.devices(CHIPS[family])[0])


def measure_tables(family: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns what a step on one table takes: by table, dtype and optimizer."""
    measured: dict[str, Any] = {}
    for v, d in TABLES:
        by_dtype = measured[f"{v}x{d}"] = {}
        for dtype in DTYPES:
            table = jax.ShapeDtypeStruct((v, d), dtype, sharding=chip(family))
            by_dtype[dtype] = {}
            for name, make in COMPARED.items():
                step = compile_step(make(), table)
                seconds = step.cost_analysis().get("optimal_seconds", -1)
                by_dtype[dtype][name] = sizes(step, make(), table) | {
                    # Negative where the compiler gives no estimate.
                    "seconds": seconds if seconds > 0 else None
                }
    return measured


def measure_training(family: str) -> dict[str, dict[str, Any]]:
    """Returns the peak memory of a training step in bytes: by case and optimizer."""
    measured: dict[str, Any] = {}
    for tied in (False, True):
        for dtype in DTYPES:
            case = f"{'tied' if tied else 'untied'}, {dtype}"
            measured[case] = {}
            for name in IN_TRAINING:
                step = compile_training_step(
                    OPTIMIZERS[name], sharding=chip(family), dtype=dtype, tied=tied
                )
                peak = step.memory_analysis().peak_memory_in_bytes
                measured[case][name] = peak
    return measured


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    measured: dict[str, Any] = {}
    for family in (progress := tqdm(CHIPS)):
        progress.set_description(family)
        tables, training = measure_tables(family), measure_training(family)
        measured[family] = {"tables": tables, "training": training}
    store.write_object(TPU, {"measured": measured}, "libtpu")
    print(f"Wrote {TPU}")


if __name__ == "__main__":
    main()
