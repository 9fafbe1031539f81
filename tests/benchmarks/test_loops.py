"""Counts of a step with loops on TPUs, against the operations of its products."""

import pytest

from benchmarks.step.loops import compile_repeated, count
from configs import pretrain_small
from examples.lm import cost
from examples.lm.mesh import use_mesh
from examples.lm.program import make_program
from tests.compiling import tpu_devices
from tests.marks import needs_libtpu


@needs_libtpu
@pytest.mark.nightly
@pytest.mark.usefixtures("no_cache", "standard_promotion")
def test_loops_are_counted_as_often_as_they_run() -> None:
    config = pretrain_small.get_config()
    config.update(batch_size=8, sequence_length=256, loss_chunks=4)
    config.data.vocab_size = 2048
    config.model.update(width=256, layers=3, heads=2, mlp_width=1024)
    config.model.update(scan_layers=True, dtype="bfloat16", attention="plain")
    config.mesh.tensor = 2
    with use_mesh(config, tpu_devices("v5p:2x2x1")) as mesh:
        program = make_program(config, mesh)
        step = program.train_step.lower(program.state, program.tokens).compile()
        repeated = compile_repeated(config, program)
    expected = cost.flops(config, recomputed=True) / mesh.size
    assert count("flops", step, repeated) == pytest.approx(expected, rel=0.1)
    for name in ("flops", "bytes accessed", "optimal_seconds"):
        once, all_ = count(name, step), count(name, step, repeated)
        assert once is not None
        assert all_ is not None
        assert all_ > 1.3 * once
