"""Wrong settings of a cluster in the environment are a line."""

import subprocess
import sys

import pytest

from tests.examples.pretraining import ROOT

PROGRAM = """
from examples.lm import command, processes
with command.one_line_errors():
    processes.initialize()
"""
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "localhost:1"}


@pytest.mark.parametrize(
    "settings",
    [
        {"JAX_NUM_PROCESSES": "2"} | ADDRESS,
        {"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"} | ADDRESS,
        {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"} | ADDRESS,
        {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "-1"} | ADDRESS,
        {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
    ],
)
def test_wrong_settings_are_a_line(monkeypatch, settings):
    # In a child: here, JAX has started already.
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "JAX_NUM_PROCESSES is" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
