"""Provenance of a result: command, machine and versions."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "optax", "flax", "tokenizers", "ember-optax")


def provenance(*packages: str) -> dict[str, Any]:
    """Returns the command, the machine and the versions behind a measurement.

    Args:
      *packages: further distributions whose versions to record.
    """
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
            **{name: version(name) for name in (*PACKAGES, *packages)},
        },
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.processor()
