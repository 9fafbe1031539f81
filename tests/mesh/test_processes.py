"""Tables that are sharded over two processes equal those on one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.mesh.process_worker import CASES
from tests.mesh.training import one_device, present

pytestmark = pytest.mark.usefixtures("standard_promotion")

ROOT = Path(__file__).parents[2]
PROCESSES, DEVICES = 2, 4


def test_two_processes_equal_one_device(tmp_path: Path) -> None:
    path = tmp_path / "tables.npz"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    worker = [sys.executable, "-m", "tests.mesh.process_worker"]
    started = [
        subprocess.Popen(
            [*worker, address, str(PROCESSES), str(index), str(path)],
            env=environment,
            cwd=ROOT,
        )
        for index in range(PROCESSES)
    ]
    try:
        assert [process.wait(timeout=300) for process in started] == [0] * PROCESSES
    finally:
        for process in started:
            process.kill()
            process.wait()
    with np.load(path) as tables:
        for name, expected in one_device().items():
            # jax.random may round the last bit differently in another process.
            first = tables[f"first/{name}"]
            absent = np.asarray(present(first) == 0)
            for case in CASES:
                result = tables[f"{case}/{name}"]
                np.testing.assert_allclose(
                    result, expected, rtol=1e-6, atol=1e-6, err_msg=case
                )
                np.testing.assert_array_equal(result[absent], first[absent])
