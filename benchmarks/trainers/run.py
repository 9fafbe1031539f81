"""Runs a trainer with AdamW and with Ember: `make trainer-maxtext`.

    .venv-maxtext/bin/python -m benchmarks.trainers.run maxtext

With --labels it only checks the labels of the trainer's models again.
It needs the environment that benchmarks/trainers/environment.py creates.
"""

import importlib
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "ember-optax")
DEVICES = 4


def main(name: str, only_labels: bool = False) -> None:
    # JAX reads these when it is imported.
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    from benchmarks.trainers import checks, report

    trainer = importlib.import_module(f"benchmarks.trainers.{name}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        if only_labels:
            result = checks.read(report.RESULTS)[name] | {
                "families": checks.check_families(trainer.build, trainer.MODELS)
            }
        else:
            result = trainer.run(Path(directory))
    record: dict[str, Any] = {
        "trainer": name,
        "version": getattr(trainer, "VERSION", None) or version(trainer.PACKAGE),
    } | result
    record["devices"] = DEVICES
    if not only_labels:
        record["seconds"] = round(time.monotonic() - start)
    versions = {package: version(package) for package in PACKAGES}
    record["versions"] = {"python": platform.python_version()} | versions
    checks.write(report.RESULTS, record, report.TITLES)
    for key, value in record.items():
        print(f"{key}: {value}")
    if (models := record.get("families")) and (models["wrong"] or not models["right"]):
        raise SystemExit(f"Wrong labels, or no model was built: {models}")


if __name__ == "__main__":
    main(sys.argv[1], only_labels="--labels" in sys.argv)
