"""Tests for examples/lm/cost.py, with the TPU compiler where it is installed."""

import importlib.util

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import pretrain_small
from examples.lm import Config, cost
from examples.lm.mesh import use_mesh
from examples.lm.program import make_program
from tests.marks import needs_libtpu

pytestmark = pytest.mark.usefixtures("no_cache")


@pytest.fixture
def config() -> Config:
    config = pretrain_small.get_config()
    config.update(batch_size=4, sequence_length=128)
    config.data.vocab_size = 1024
    config.model.update(width=128, layers=2, heads=2, mlp_width=256)
    return config


@needs_libtpu
def test_report(config: Config) -> None:
    config.cost_report_topology = "v5p:2x2x1"
    config.model.update(layers=1, attention="plain")
    config.mesh.tensor = 2
    text = cost.report(config)
    assert text.startswith("v5p:2x2x1: 4 devices, data 1, fsdp 2, tensor 2\n")
    # Each device has a quarter of the matrices and all of the four norms.
    matrices = 4 * 128**2 + 3 * 128 * 256 + 2 * 1024 * 128
    assert f"  parameters       {(matrices + 4 * 4 * 128) / 1e6:12,.2f} MB\n" in text
    assert " of 95 GB: fits\n" in text
    assert "all-reduce" in text
    assert "Time of the products alone: at least 0.00 ms a step\n" in text
    assert "all devices: 0.01 MB with ember, 2.10 MB with adam" in text


@needs_libtpu
def test_a_step_that_does_not_fit_says_so(config: Config) -> None:
    config.update(cost_report_topology="v5e:2x2", sequence_length=2**17 - 1)
    text = cost.report(config)
    assert text.startswith("v5e:2x2 DOES NOT FIT. RESOURCE_EXHAUSTED")


@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5p", "v5p:3x3x3", "v5e:big"])
def test_unknown_slice(name: str) -> None:
    with pytest.raises(ValueError, match=f"The topology is '{name}'"):
        cost.tpu_devices(name)


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_peak_flops_are_known(name: str) -> None:
    assert cost.peak_flops(Mesh(cost.tpu_devices(name), "x")) < float("inf")


def test_without_libtpu_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"jax\[tpu\]"):
        cost.tpu_devices("v6e:4x4")


@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_those_that_the_compiler_counts(config: Config, tied: bool) -> None:
    config.model.update(tie_embeddings=tied, attention="plain")
    config.mesh.fsdp = 1
    with use_mesh(config) as mesh:
        program = make_program(config, mesh)
        step = program.train_step.lower(program.state, program.tokens).compile()
    counted = step.cost_analysis()["flops"]
    assert counted == pytest.approx(cost.flops(config, recomputed=True), rel=0.1)


def test_flops_of_what_is_recomputed(config: Config) -> None:
    once = cost.flops(config, recomputed=False)
    config.update(loss_chunks=2)
    config.model.remat = "full"
    assert cost.flops(config, recomputed=False) == once
    assert cost.flops(config, recomputed=True) == pytest.approx(once * 4 / 3, rel=0.01)


def test_bytes_per_device() -> None:
    mesh = Mesh(np.reshape(jax.devices()[:4], (2, 2)), ("a", "b"))
    tree = [
        jax.ShapeDtypeStruct((8, 6), dtype, sharding=NamedSharding(mesh, spec))
        for dtype, spec in (("float32", P("a", "b")), ("bfloat16", P(None, "b")))
    ]
    assert cost.bytes_per_device(tree) == 4 * 3 * 4 + 8 * 3 * 2
