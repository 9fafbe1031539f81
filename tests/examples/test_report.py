"""What a step is said to cost on a TPU pod, against what can be counted by hand."""

import re

import jax
import pytest

from examples.lm import Config, report
from examples.lm.mesh import use_mesh
from examples.lm.program import make_program

pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jax[tpu]'")
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def config(config: Config) -> Config:
    config.batch_size = 8
    config.data.vocab_size = 8192
    config.model.update(width=256, mlp_width=512, layers=3, scan=True, remat="full")
    config.mesh.update(fsdp=-1, tensor=2)
    config.compile_topology = "v5p:2x2x1"
    return config


def test_bytes_are_those_of_the_parameters_and_states(config: Config) -> None:
    text = report.compile_for(config)
    assert "v5p:2x2x1: 4 chips, data 1, fsdp 2, tensor 2" in text
    tables, body = 2 * 8192 * 256, 3 * (4 * 256 * 256 + 3 * 256 * 512)
    norms = 7 * 256  # replicated, where the others are cut into four
    found = {
        label.strip(): float(number) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
        for label, number, unit in re.findall(
            r"^  (.*?) {2,}([\d.,]+) (kB|MB|GB)", text, re.MULTILINE
        )
    }
    parameters = (tables + body) + 4 * norms
    expected = {
        "parameters": parameters,
        "state of the body's optimizer": 2 * (body + 4 * norms),
        "state of the tables' optimizer": 4 * 2 * (8192 + 256),
        "with AdamW instead": 2 * tables,
        "of which gradients, at least": parameters,
    }
    for label, n_bytes in expected.items():
        assert found[label] == pytest.approx(n_bytes, rel=1e-2), label
    assert found["peak of all"] >= sum(
        found[label] for label in expected if "state" in label or label == "parameters"
    )
    assert "of 95 GB: fits" in text
    assert "tables' optimizer\n  1 all-reduce (67.58 kB)\n" in text
    seconds = re.search(r"Estimated by the compiler: ([\d.]+) ms a step", text)
    assert seconds
    assert 0 < float(seconds[1]) < 1e3


def test_a_step_that_does_not_fit_says_so(config: Config) -> None:
    # 16 GB of logits on each of four chips, in the forward pass alone.
    config.compile_topology = "v5e:2x2"
    config.update(batch_size=64, sequence_length=8192, loss_chunks=1)
    assert "DOES NOT FIT" in report.compile_for(config)


@pytest.mark.parametrize("name", ["v5p", "v9:2x2", "v5e:3x5x7"])
def test_unknown_topologies_are_an_error(config: Config, name: str) -> None:
    config.compile_topology = name
    with pytest.raises(ValueError, match=f"topology is '{name}'"):
        report.compile_for(config)


def test_bytes_per_device_of_real_arrays(config: Config) -> None:
    with use_mesh(config) as mesh:
        program = make_program(config, mesh)
        state = program.init()
    on_first = sum(
        shard.data.nbytes
        for x in jax.tree.leaves(state)
        for shard in x.addressable_shards
        if shard.device == jax.devices()[0]
    )
    assert report.bytes_per_device(program.state) == on_first
