"""A mistake in a config is a line that names the field, before anything runs."""

import os
import re
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import examples.pretrain
from configs import pretrain_1b_pod, pretrain_8b_pod, pretrain_124m, pretrain_small
from examples.lm import command, config_check
from examples.lm.errors import UserError
from tests.examples.pretraining import ROOT, opened

NAN, INF = float("nan"), float("inf")
COUNTS = """steps batch_size sequence_length model.width model.layers model.heads
    model.mlp_width model.kv_heads model.vocab_multiple loss_chunks eval_every
    eval_batches checkpoint_every keep_checkpoints""".split()
TOO_LARGE = {
    "batch_size": 2**31 - 1,  # its rows alone took all memory
    "data.vocab_size": 2**30,  # aborted in the trainer of the tokenizer
    "model.layers": 10**6,  # hung
    "model.mlp_width": 2**30,
    "model.vocab_multiple": 2**30,
    "model.width": 2**30,  # aborted in XLA
}
WRONG = {
    **{name: [0, -1, 1.5, True, "2", 2**40] for name in COUNTS},
    "seed": [-1, None, 0.5, 2**40],
    "data.split_seed": [-1, "0"],
    "data.path": ["", 7, " ", "a\0b"],
    "data.vocab_size": [0, -5, 1, 256, 4096.0, None],
    "data.validation_fraction": [-0.1, 1.0, 1.5, NAN, "0.1", None],
    "data.cache_dir": ["", None],
    "model.rope_base": [0, -1.0, NAN, INF],
    "model.tied": [1, "yes", None],
    "model.scan": [0],
    "model.remat": ["some", None, True],
    "model.dtype": ["float7", "int32", None],
    "mesh.data": [0, -2, 1.0, "all"],
    "mesh.fsdp": [None],
    "axis_rules.vocab": ["model", "fsdp,fsdp", "fsdp, tensor", None, ",", 1],
    "tables.optimizer": ["lion", "Ember", None, 1],
    "tables.embed_learning_rate": [0, -1e-3, NAN, INF, "1e-3"],
    "tables.head_learning_rate": [0, NAN],
    "tables.b2": [1.0, -0.1, NAN, 2],
    "tables.weight_decay": [-0.1, NAN, None],
    "tables.tuned.ember.embed": [0, None],
    "tables.tuned.ember.head": [-1],
    "tables.tuned.ember.b2": [1.0],
    "tables.tuned.adam.b1": [1.0, None],
    "tables.tuned.adam.b2": [1.0, None],
    "body.optimizer": ["sgd"],
    "body.learning_rate": [0.0, -1],
    "body.weight_decay": [-1],
    "body.tuned.adamw": [0],
    "warmup_fraction": [1.0, -0.1, 2],
    "final_fraction": [-0.1, 1.1],
    "clip_norm": [0, -1.0, NAN, None],
    "compile_topology": ["", 3],
    "workdir": ["", None, 3],
    "tensorboard": ["runs", None],
    "resume": [1, None],
    "overwrite": ["yes"],
}


def change(config: ConfigDict, name: str, value: object) -> None:
    with config.ignore_type():
        config.update_from_flattened_dict({name: value})


@pytest.mark.parametrize(
    ("name", "value"), [(n, value) for n, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_a_line_that_names_the_field(config, name, value):
    change(config, name, value)
    value = config_check.flat(config.to_dict())[name]  # 0 may have become 0.0
    line = re.escape(f"config.{name} is {value!r}, but must be ")
    with pytest.raises(UserError, match=rf"^{line}[^\n]+\.$"):
        config_check.check(config)


@pytest.mark.parametrize(("name", "value"), TOO_LARGE.items())
def test_a_size_that_would_end_the_process_is_a_line(config, name, value):
    change(config, name, value)
    with pytest.raises(UserError, match=rf"config\.{name} is {value}, but must be"):
        config_check.check(config)


def test_every_field_has_a_rule_and_wrong_values_here():
    fields = {n for n in config_check.FIELDS if not n.startswith(("axis_", "mesh."))}
    untested = {n for n in fields if ".tuned." not in n} - WRONG.keys()
    assert not untested


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.heads": 3}, r"heads is 3 and config.model.width 16"),
        ({"model.heads": 16}, r"the width of a head, 1, must be an even"),
        ({"model.heads": 4, "model.kv_heads": 3}, "kv_heads is 3, but must divide"),
        ({"loss_chunks": 3}, "loss_chunks is 3, but must divide config.sequence_len"),
        ({"mesh.fsdp": -1, "mesh.tensor": -1}, "only one axis may be -1"),
        ({"axis_rules.table_width": "tensor"}, "must be sharded over different axes"),
        ({"axis_rules.logits": "data"}, "must be sharded over different axes"),
        ({"axis_rules.layers": "fsdp"}, "must be sharded over different axes"),
        ({"warmup_fraction": 0.99}, "warmup_fraction is 0.99, which is all of 6 steps"),
        ({"tables.optimizer": "sgd", "tables.b2": 0.9}, "but sgd has no b2"),
        (
            {"model.tied": True, "tables.embed_learning_rate": 0.5},
            r"are tied and have only config\.tables\.head_learning_rate: give that\.",
        ),
        ({"tables.learning_rate": 0.5}, "learning_rate is 0.5, but no field has that"),
        ({"resume": True, "overwrite": True}, "give only one of them"),
        ({"compile_topology": "v9:2x2"}, "topology is 'v9:2x2'"),
        ({"data.path": "nothing.txt"}, "'nothing.txt' names no file"),
        ({"workdir": "/proc/none"}, "config.workdir is '/proc/none', where no files"),
        ({"data.cache_dir": "/dev/null/x"}, "cache_dir is .*: Not a directory"),
        ({"stepz": 1}, "config.stepz is 1, but no field has that name"),
        ({"tables.tuned.lion": {"b2": 0.5}}, "tuned.lion.b2 is 0.5, but no field has"),
        ({"mesh.pipeline": 2}, "mesh.pipeline is 2, but no field has that name"),
    ],
)
def test_values_that_contradict_each_other(config, changes, message):
    for name, value in changes.items():
        change(config, name, value)
    with pytest.raises(UserError, match=message):
        config_check.check(config)


def test_missing_fields_and_groups_are_named(config):
    del config.clip_norm
    del config.tables.tuned.ember
    config.body = ConfigDict()
    with pytest.raises(UserError) as error:
        config_check.check(config)
    for name in ("clip_norm", "body.optimizer", "body.weight_decay"):
        assert f"config.{name} is missing" in str(error.value)


def test_the_optimizer_needs_its_tuned_settings(config):
    del config.tables.tuned.adam.b1
    with pytest.raises(UserError, match=r"tables\.tuned\.adam\.b1 is missing"):
        config_check.check(config)
    del config.tables.tuned.adam  # which is not used
    config_check.check(config)
    del config.tables.tuned.ember
    with pytest.raises(UserError, match=r"tables\.tuned has no ember"):
        config_check.check(config)


def test_every_mistake_has_its_line(config):
    config.update(steps=0, batch_size=-1)
    config.model.remat = "some"
    with pytest.raises(UserError) as error:
        config_check.check(config)
    assert len(str(error.value).splitlines()) == 3


def test_compare_with_two_arms_that_are_one(config):
    config.tables.optimizer = "adam"
    with pytest.raises(UserError, match="--compare adds a run"):
        config_check.check(config, compare=True)


def test_a_file_in_the_place_of_a_directory(config, tmp_path):
    (tmp_path / "file").write_text("")
    config.workdir = str(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"config\.workdir is .*: Not a directory"):
        config_check.check(config)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_directory_that_may_not_be_written(config, tmp_path):
    opened(tmp_path)
    config.data.cache_dir = str(tmp_path)  # of root
    os.seteuid(65534)
    try:
        with pytest.raises(UserError, match="where no files can be written"):
            config_check.check(config)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "module", [pretrain_small, pretrain_124m, pretrain_1b_pod, pretrain_8b_pod]
)
def test_the_configs_of_this_repository_are_right(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config_check.check(module.get_config(), compare=True)
    for name in config_check.TABLES:
        config = module.get_config()
        config.tables.optimizer = name
        config_check.check(config)


@pytest.mark.parametrize("module", [pretrain_124m, pretrain_1b_pod, pretrain_8b_pod])
def test_learning_rates_follow_the_width(module):
    small, config = pretrain_small.get_config(), module.get_config()
    scale = (small.model.width / config.model.width) ** 0.5
    pairs = [(small.body.tuned, config.body.tuned, ("adamw", "muon"))]
    for name in ("ember", "adam"):
        tuned = small.tables.tuned[name], config.tables.tuned[name]
        pairs.append((*tuned, ("embed", "head")))
    for before, after, names in pairs:
        for name in names:
            assert after[name] == float(f"{scale * before[name]:.2g}")


def run_program(monkeypatch, *arguments: str) -> object:
    """Runs the program with its flags in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["pretrain", *arguments])
    # All config files are loaded as this module; one would see the names of the last.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    with pytest.raises(SystemExit) as ended:
        command.start(examples.pretrain.main)
    return ended.value.code


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_wrong_flags_are_a_line_and_no_traceback(monkeypatch, tmp_path):
    file = f"--config={ROOT / 'configs/pretrain_small.py'}"
    broken = Path(tmp_path, "broken.py")
    broken.write_text("def get_config(: pass")
    empty = Path(tmp_path, "empty.py")
    empty.write_text("")
    plain = Path(tmp_path, "plain.py")
    plain.write_text("def get_config(): return {'steps': 1}")
    for arguments, message in [
        ((file, "--config.stepz=7"), 'Did you mean "steps"'),
        ((file, "--config.mesh.foo=7"), "no field 'foo'"),
        ((file, "--stepz=7"), "Unknown command line flag 'stepz'"),
        ((file, "--config.seed=x"), "invalid literal for int()"),
        ((file, "steps=7"), "Unknown argument 'steps=7'"),
        ((file, "--config.steps=0"), "config.steps is 0"),
        ((f"--config={tmp_path}/none.py",), "config file cannot be read"),
        ((f"--config={broken}",), "cannot be read: SyntaxError"),
        ((f"--config={empty}",), "has no attribute 'get_config'"),
        ((f"--config={plain}",), "'dict' object has no attribute 'to_dict'"),
    ]:
        code = run_program(monkeypatch, *arguments)
        assert message in str(code)
        assert len(str(code).strip().splitlines()) == 1
