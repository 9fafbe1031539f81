"""What every benchmark writes beside its numbers: where and how they came about."""

import json
import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "optax", "flax", "tokenizers", "ember-optax")


def provenance() -> dict[str, Any]:
    """Returns the command, the machine and the versions behind a measurement."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"-m {module.name}" if module else sys.argv[0]
    return {
        "command": " ".join(["python", program, *sys.argv[1:]]),
        "machine": {
            "device": jax.devices()[0].device_kind,
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    }


def write(name: str, content: dict[str, Any]) -> Path:
    """Writes a result with its provenance to `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(provenance() | content, indent=2) + "\n")
    return path


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.processor()


def markdown(
    head: list[str], rows: Iterable[Iterable[str]], left: int | None = None
) -> str:
    """Returns a table.

    Args:
      head: of the columns.
      rows: below it.
      left: number of columns aligned to the left, before those of numbers; by default
        all are.
    """
    left = len(head) if left is None else left
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *rows])
