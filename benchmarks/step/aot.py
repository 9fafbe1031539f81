"""Costs of steps on token tables, compiled for a device that is not present."""

from collections.abc import Sequence
from typing import Any

import jax
from tqdm import tqdm

from benchmarks.step.compiling import (
    DTYPES,
    OPTIMIZERS,
    WITHOUT_MUON,
    clipped,
    state_bytes,
)
from tests.compiling import bytes_of, compile_step
from tests.hlo import bytes_accessed


def measure_tables(
    shapes: Sequence[tuple[int, int]], sharding: jax.sharding.Sharding
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the costs of a step on one table: by table, dtype and optimizer."""
    measured: dict[str, Any] = {}
    cases = [(shape, dtype) for shape in shapes for dtype in DTYPES]
    for (v, d), dtype in (progress := tqdm(cases, leave=False)):
        progress.set_description(f"{v} x {d}, {dtype}")
        table = jax.ShapeDtypeStruct((v, d), dtype, sharding=sharding)
        by_name = {name: measure(name, table) for name in WITHOUT_MUON}
        measured.setdefault(f"{v}x{d}", {})[dtype] = by_name
    return measured


def measure(name: str, table: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Returns the `state_bytes` of an optimizer and the costs of its step.

    The step is compiled `alone` and `clipped`. Each has `temp_bytes`,
    `bytes_accessed_over_table` and the estimated `seconds`.
    """
    tx = OPTIMIZERS[name]()
    measured: dict[str, Any] = {"state_bytes": state_bytes(tx, table)}
    for how, optimizer in (("clipped", clipped(name)), ("alone", tx)):
        step = compile_step(optimizer, table)
        seconds = (step.cost_analysis() or {}).get("optimal_seconds", -1)
        measured[how] = {
            "temp_bytes": step.memory_analysis().temp_size_in_bytes,
            "bytes_accessed_over_table": bytes_accessed(step.as_text())
            / bytes_of(table),
            # XLA:GPU gives no estimate; XLA:TPU sometimes gives a negative one.
            "seconds": seconds if seconds > 0 else None,
        }
    return measured
