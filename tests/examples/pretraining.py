"""What a run of the pretraining program leaves behind, and how to watch one."""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from examples.lm import Config, data, training
from examples.lm.metrics import MetricsLog

ROOT = Path(__file__).parents[2]


def train(config: Config, **settings: object) -> training.Result:
    """Trains in this process, in the place of an earlier run unless it resumes it."""
    config.update(settings)
    once = ConfigDict(config.to_dict())
    once.overwrite = not config.resume
    return training.train(once, data.load(**config.data), run_dir(config))


def at_step(
    monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]
) -> None:
    """Runs the action in the given step of training."""
    write = MetricsLog.write

    def act_and_write(log: MetricsLog, **record: float) -> None:
        if record["step"] == step and "loss" in record:
            action()
        write(log, **record)

    monkeypatch.setattr(MetricsLog, "write", act_and_write)


def opened(path: Path) -> None:
    """Lets everybody read a temporary directory, and those around it."""
    temporary = Path(tempfile.gettempdir())
    for directory in (path, *path.parents):
        if temporary in directory.parents:
            directory.chmod(0o755)


def run_dir(config: Config) -> Path:
    return Path(config.workdir, config.tables.optimizer)


def checkpoint(config: Config, step: int) -> Path:
    return run_dir(config) / "checkpoints" / str(step)


def complete_steps(config: Config) -> list[int]:
    directory = run_dir(config) / "checkpoints"
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit())


def losses(config: Config) -> list[dict[str, float]]:
    """All that the log of a run holds, without the clock."""
    path = run_dir(config) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{**json.loads(line), "seconds": 0} for line in lines]


def wait_until(condition: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def wait_for_a_step(config: Config, process: subprocess.Popen) -> None:
    """Returns when the log grows."""
    log = run_dir(config) / "metrics.jsonl"
    size = log.stat().st_size if log.exists() else 0
    wait_until(lambda: log.exists() and log.stat().st_size > size, process)
