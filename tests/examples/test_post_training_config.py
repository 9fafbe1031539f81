"""Tests for examples/post_training/config_check.py, which does not need tunix."""

import pytest

from configs import finetune_small, grpo_small
from examples.lm.errors import UserError
from examples.post_training import config_check

PHASES = ("pretraining", "finetuning")


def test_the_configs_of_this_repository_are_right():
    config_check.validate(finetune_small.get_config(), PHASES, compare=True)
    config_check.validate(grpo_small.get_config(), ("supervised", "rl"))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tables.optimizer", "lion", "is 'lion', but must be one of adam, ember"),
        ("body.optimizer", "lion", "is 'lion', but must be one of adamw"),
        ("steps", 0, "must be positive"),
        ("tables.optimizer", "adam", "already"),
    ],
)
def test_mistakes_are_named(name, value, words):
    config = finetune_small.get_config()
    config.finetuning.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=words):
        config_check.validate(config, PHASES, compare=True)


def test_only_results_of_the_program_are_deleted_and_only_if_told(tmp_path):
    (tmp_path / "ember_4" / "actor").mkdir(parents=True)
    (tmp_path / "thesis.txt").write_text("precious")
    config = grpo_small.get_config()
    config.workdir = str(tmp_path)
    with pytest.raises(UserError, match="contains a run"):
        config_check.claim(config, ["ember_*", "reward.png"])
    config.overwrite = True
    config_check.claim(config, ["ember_*", "reward.png"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
