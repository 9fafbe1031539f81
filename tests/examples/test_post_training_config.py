"""Configs of the programs on tunix, which need not be installed to check them."""

import re

import pytest
from ml_collections import ConfigDict

from configs import finetune_small, grpo_small
from examples.lm import run_dir
from examples.lm.errors import UserError
from examples.post_training import config_check
from tests.examples.test_config_check import change


@pytest.fixture
def finetuning(tmp_path, corpus) -> ConfigDict:
    config = finetune_small.get_config()
    config.workdir, config.data.path = str(tmp_path / "run"), str(corpus)
    config.data.cache_dir = str(tmp_path / "cache")
    return config


@pytest.fixture
def grpo(tmp_path) -> ConfigDict:
    config = grpo_small.get_config()
    config.workdir = str(tmp_path / "run")
    return config


def test_the_configs_of_this_repository_are_right(finetuning, grpo):
    config_check.check_finetuning(finetuning, compare=True)
    config_check.check_grpo(grpo)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_length", 1),
        ("data.vocab_size", 256),
        ("pretraining.steps", 0),
        ("finetuning.batch_size", -1),
        ("finetuning.tables.optimizer", "lion"),
        ("finetuning.clip_norm", 0.0),
        ("tasks", ""),
        ("eval_every", 0),
        ("tensorboard", "runs"),
        ("overwrite", None),
    ],
)
def test_wrong_values_for_finetuning(finetuning, name, value):
    change(finetuning, name, value)
    line = re.escape(f"config.{name} is {value!r}, but must be ")
    with pytest.raises(UserError, match=rf"^{line}[^\n]+\.$"):
        config_check.check_finetuning(finetuning)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("numbers", 0),
        ("batch_sizes", ()),
        ("batch_sizes", (4, 0)),
        ("rl.generations", 1),
        ("rl.temperature", 0.0),
        ("rl.beta", -1.0),
        ("supervised.body.learning_rate", -1.0),
        ("tensorboard", None),
    ],
)
def test_wrong_values_for_grpo(grpo, name, value):
    change(grpo, name, value)
    line = re.escape(f"config.{name} is {value!r}, but must be ")
    with pytest.raises(UserError, match=rf"^{line}[^\n]+\.$"):
        config_check.check_grpo(grpo)


def test_values_that_contradict_each_other(finetuning):
    finetuning.finetuning.tables.optimizer = "adam"
    with pytest.raises(UserError, match="--compare adds a run"):
        config_check.check_finetuning(finetuning, compare=True)
    finetuning.model.use_tied_embedding = True
    finetuning.finetuning.tables.embed_learning_rate = 0.1
    with pytest.raises(
        UserError, match=r"only config\.finetuning\.tables\.head_learning_rate"
    ):
        config_check.check_finetuning(finetuning)
    finetuning.finetuning.tables.embed_learning_rate = None
    finetuning.update(resume=True, overwrite=True)
    with pytest.raises(UserError, match="give only one of them"):
        config_check.check_finetuning(finetuning)
    finetuning.finetuning.update(steps=3, warmup_fraction=0.9)
    with pytest.raises(UserError, match=r"config\.finetuning\.warmup_fraction is 0\.9"):
        config_check.check_finetuning(finetuning)


def test_a_file_of_tasks_that_is_missing_is_named_before_anything_runs(finetuning):
    finetuning.tasks = "typo.jsonl"
    with pytest.raises(FileNotFoundError, match=r"^tasks 'typo\.jsonl' names no file"):
        config_check.check_finetuning(finetuning)


def test_only_what_the_program_has_made_is_deleted_and_only_when_told(tmp_path):
    (tmp_path / "ember_4" / "actor").mkdir(parents=True)
    (tmp_path / "thesis.txt").write_text("precious")
    names = ["ember_*", "reward.png"]
    with pytest.raises(UserError, match=r"holds another run \(ember_4\)"):
        run_dir.delete_earlier(tmp_path, names, overwrite=False)
    assert (tmp_path / "ember_4" / "actor").exists()
    run_dir.delete_earlier(tmp_path, names, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
