"""A run goes on with another optimizer on its tables."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ember_optax import EmberState
from examples.lm import checkpoints
from examples.lm.mesh import use_mesh
from examples.lm.program import State, make_program
from examples.tools.convert_checkpoint import convert
from tests.examples.pretraining import (
    ROOT,
    checkpoint,
    complete_steps,
    losses,
    run_dir,
    train,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")


def read(config, step: int) -> State:
    with use_mesh(config) as mesh:
        target = make_program(config, mesh).state
        return checkpoints.read(checkpoint(config, step), target, config)[0]


def run_until_step_4(config, optimizer: str) -> Path:
    """Trains, as if it had been stopped, and returns the directory of the run."""
    config.tables.optimizer = optimizer
    train(config)
    src = run_dir(config)
    (src / "checkpoints" / "6").rename(src / "not_reached")
    return src


@pytest.mark.parametrize(("old", "new"), [("adam", "ember"), ("ember", "adam")])
def test_the_run_goes_on_with_the_other_optimizer(old, new, config):
    src = run_until_step_4(config, old)
    before, all_of_old = read(config, 4), losses(config)
    dst = src.with_name(new)
    step, new_config = convert(src, dst)
    assert (step, new_config.tables.optimizer) == (4, new)

    config.tables.optimizer = new
    after = read(config, 4)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), before.params, after.params)
    assert jax.tree.all(same)
    kind = lambda x: isinstance(x, EmberState)  # noqa: E731
    found = any(map(kind, jax.tree.leaves(after.opt_state, is_leaf=kind)))
    assert found == (new == "ember")

    train(config, resume=True)
    log = losses(config)
    assert complete_steps(config)[-1] == 6
    assert [r["step"] for r in log if "loss" in r] == [1, 2, 3, 4, 5, 6]
    until_4 = [r for r in all_of_old if r["step"] <= 4]
    assert log[: len(until_4)] == until_4
    # The loss before step 5 is of the same parameters on the same batch.
    (loss_5,), (expected,) = (
        [r["loss"] for r in records if r["step"] == 5 and "loss" in r]
        for records in (log, all_of_old)
    )
    np.testing.assert_allclose(loss_5, expected, rtol=1e-6)


def test_there_and_back_from_a_mesh(config):
    config.mesh.fsdp = 2
    src = run_until_step_4(config, "ember")
    before = read(config, 4)
    convert(src, src.with_name("adam"))
    convert(src.with_name("adam"), src.with_name("again"))
    (src / "checkpoints").rename(src / "old")
    (src.with_name("again") / "checkpoints").rename(src / "checkpoints")
    after = read(config, 4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6), before, after
    )


def test_the_command_with_settings_of_the_new_optimizer(config):
    src = run_until_step_4(config, "adam")
    command = [
        "-m",
        "examples.tools.convert_checkpoint",
        str(src),
        str(src.parent / "ember"),
    ]
    done = subprocess.run(
        [sys.executable, *command, "--head_learning_rate=0.02", "--b2=0.9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "can go on from step 4 with ember" in done.stdout, done.stderr
    config.tables.optimizer = "ember"
    with pytest.raises(checkpoints.Unusable, match=r"tables\.b2 was 0\.9"):
        train(config, resume=True)
    config.tables.update(head_learning_rate=0.02, b2=0.9)
    train(config, resume=True)
    assert complete_steps(config)[-1] == 6


def test_errors(config, tmp_path):
    with pytest.raises(ValueError, match="typo has no checkpoint"):
        convert(tmp_path / "typo", tmp_path / "new")
    assert not (tmp_path / "typo").exists()
    config.tables.optimizer = "sgd"
    train(config, steps=2)
    with pytest.raises(ValueError, match="'sgd', but only adam and ember"):
        convert(run_dir(config), tmp_path / "new")
    with pytest.raises(ValueError, match="has checkpoints already"):
        convert(run_dir(config), run_dir(config))
