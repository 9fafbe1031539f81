"""Running the pretraining program in tests, and what it leaves behind."""

import json
import subprocess
import time
from collections.abc import Callable

import fsspec
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from examples.lm import checkpoints, train
from examples.lm.config import resolve
from examples.lm.mesh import use_mesh
from examples.lm.program import make_program


def run(config, **settings) -> train.Result:
    """Trains in this process, and deletes an earlier run unless it resumes it."""
    config = ConfigDict(config.to_dict())
    config.update(settings)
    config.overwrite = not config.resume
    resolve(config)
    directory = checkpoints.open_directory(config, config.tables.optimizer)
    return train.train(config, directory)


def run_dir(config) -> epath.Path:
    return epath.Path(config.workdir) / config.tables.optimizer


def largest_file(directory: epath.Path) -> epath.Path:
    """Returns the file with most of a checkpoint's arrays."""
    fs, path = fsspec.url_to_fs(str(directory))
    found = fs.find(path, detail=True)
    name = max(found, key=lambda name: found[name]["size"])
    return epath.Path(fs.unstrip_protocol(name) if "://" in str(directory) else name)


def params(config, step: int | None = None) -> dict[str, np.ndarray]:
    """Returns the parameters and optimizer state in a checkpoint, by path."""
    config = ConfigDict(config.to_dict())
    config.update(overwrite=False, resume=True)
    config.mesh.update(data=1, fsdp=1, tensor=1)
    resolve(config)
    directory = run_dir(config) / "checkpoints"
    with use_mesh(config) as mesh, checkpoints.Checkpoints(directory, 100) as saved:
        restored = saved.restore(make_program(config, mesh).state, None)
        assert restored is not None
        assert step is None or restored.step == step
        leaves = jax.tree_util.tree_leaves_with_path(restored.state)
        return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def losses(config) -> list[tuple[int, float]]:
    """Returns step and loss of all records in the log."""
    lines = (run_dir(config) / "metrics.jsonl").read_text().splitlines()
    records = map(json.loads, lines)
    return [(r["step"], r["loss"]) for r in records if "loss" in r]


def steps(config) -> list[int]:
    directory = run_dir(config) / "checkpoints"
    names = [p.name for p in directory.iterdir()] if directory.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def wait_until(condition: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
