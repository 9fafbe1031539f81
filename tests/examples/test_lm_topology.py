"""TPU slices described on a machine without a TPU."""

import importlib.util
import subprocess
import sys

import pytest

from examples.lm import topology

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jax[tpu]'",
)


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "number", "gigabytes"),
    [
        ("v5e:8x8", 64, 16),
        ("v5p:4x4x4", 64, 95),
        ("v5p:8x8x4", 256, 95),
        ("v6e:4x4", 16, 32),
        ("tpu7x:2x2x1", 8, 96),  # two devices on each of four chips
    ],
)
def test_devices_and_their_memory(name: str, number: int, gigabytes: int) -> None:
    devices = topology.devices(name)
    assert [device.platform for device in devices] == ["tpu"] * number
    assert topology.hbm_bytes(name) == gigabytes * 10**9


@needs_libtpu
@pytest.mark.parametrize("name", ["v9:4x4", "v5p", "v5p:", "v5p:3x3x3", "v5e:big"])
def test_unknown_slice(name: str) -> None:
    with pytest.raises(ValueError, match=f"The topology is '{name}'"):
        topology.devices(name)


def test_memory_of_an_unknown_family() -> None:
    with pytest.raises(ValueError, match="one of the families v5e, v5p, v6e, tpu7x"):
        topology.hbm_bytes("v9:4x4")


@needs_libtpu
def test_another_process_may_do_the_same_and_nothing_is_printed() -> None:
    topology.devices("v6e:4x4")
    program = "from examples.lm import topology; topology.devices('v6e:4x4')"
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert other.stdout + other.stderr == ""


def test_without_libtpu_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"jax\[tpu\]"):
        topology.devices("v6e:4x4")
