"""Tests for examples/tools/convert_checkpoint.py."""

import pytest
from ml_collections import ConfigDict

from examples.lm.errors import UserError
from examples.tools.convert_checkpoint import convert
from tests.examples.pretraining import losses, params, run, run_dir, steps


def copy(config, **tables) -> ConfigDict:
    config = ConfigDict(config.to_dict())
    config.tables.update(tables)
    return config


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("adam", "ember"),
        pytest.param("ember", "adam", marks=pytest.mark.nightly),
    ],
)
def test_the_run_continues_with_the_other_optimizer(old, new, config):
    old_config, new_config = (copy(config, optimizer=name) for name in (old, new))
    run(old_config)
    (run_dir(old_config) / "checkpoints" / "6").rmtree()
    log, before = losses(old_config), params(old_config, 4)
    assert convert(copy(config), new) == 4
    after = params(new_config, 4)
    same = [name for name in before.keys() & after.keys() if name.startswith(".params")]
    assert len(same) == sum(name.startswith(".params") for name in before)
    assert all((before[name] == after[name]).all() for name in same)
    with pytest.raises(UserError, match="has checkpoints already"):
        convert(copy(config), new)
    run(new_config, resume=True)
    assert steps(new_config) == [4, 6]
    continued = losses(new_config)
    assert continued[:4] == log[:4]
    # The loss of step 5 is that of the same parameters on the same batch.
    assert continued[4][1] == pytest.approx(log[4][1], rel=1e-6)


def test_nothing_to_convert(config):
    with pytest.raises(UserError, match="has no checkpoint"):
        convert(config, "ember")
