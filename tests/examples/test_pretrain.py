import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

import examples.pretrain
from examples.lm import data, processes, training
from tests.examples.pretraining import at_step, train

pytestmark = pytest.mark.usefixtures("standard_promotion")

ROOT = Path(__file__).parents[2]

# How ml_collections reads a config file.
LOAD_MODULE = "ignore:the load_module:DeprecationWarning"


def losses(result):
    """All that a run has measured, without the clock."""
    return [{**record, "seconds": 0} for record in result.records]


def test_records_train_loss_each_step_and_validation_now_and_then(config):
    result = train(config)
    assert [r["step"] for r in result.records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in result.records if "validation_loss" in r] == [3, 6]
    file = Path(config.workdir, "ember", "metrics.jsonl")
    lines = file.read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.records
    assert result.validation_loss == result.records[-1]["validation_loss"]
    assert result.seconds == result.records[-1]["seconds"]


def test_same_seed_same_losses(config):
    config.workdir += "/a"
    first = train(config)
    again = train(config)
    other = train(config, seed=1)
    assert losses(first) == losses(again) != losses(other)


def test_training_learns(config):
    result = train(config)
    assert 5.6 < result.records[0]["loss"] < 5.8  # log(300) = 5.7
    assert result.validation_loss < 5.5


@pytest.mark.parametrize("name", ["ember", "adam"])
def test_resume_after_ctrl_c_is_bitwise_equal(name, config, monkeypatch):
    config.tables.optimizer = name
    whole = train(config)
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        stopped = train(config)
    assert stopped.step == 3
    assert losses(stopped) == losses(whole)[:4]
    resumed = train(config, resume=True)
    assert losses(resumed) == losses(whole)


def test_resume_after_a_crash_goes_back_to_the_last_checkpoint(config, monkeypatch):
    def crash():
        raise RuntimeError("crash")

    whole = train(config)
    with monkeypatch.context() as patch:
        at_step(patch, 6, crash)
        with pytest.raises(RuntimeError, match="crash"):
            train(config)
    resumed = train(config, resume=True)
    assert losses(resumed) == losses(whole)
    file = Path(config.workdir, "ember", "metrics.jsonl")
    lines = file.read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.records


def test_resume_of_a_finished_run_returns_what_it_found(config):
    whole = train(config)
    again = train(config, resume=True)
    assert again == whole


def test_resume_without_a_checkpoint_starts(config):
    assert train(config, resume=True).step == config.steps


def test_keeps_the_last_checkpoints_only(config):
    train(config)
    directory = Path(config.workdir, "ember", "checkpoints")
    assert sorted(p.name for p in directory.iterdir() if p.name.isdigit()) == ["4", "6"]


def test_a_new_run_replaces_the_old_one(config, monkeypatch):
    train(config)
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: signal.raise_signal(signal.SIGINT))
        result = train(config)
    assert len(result.records) == 1
    directory = Path(config.workdir, "ember", "checkpoints")
    assert [p.name for p in directory.iterdir() if p.name.isdigit()] == ["1"]


def test_resume_with_another_config_is_an_error(config):
    train(config)
    config.model.heads = 1
    config.tables.head_learning_rate = 0.5
    with pytest.raises(
        ValueError,
        match=r"another config: model\.heads was 2 and is 1;"
        r" tables\.head_learning_rate was None and is 0\.5",
    ):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("setting", "value", "path", "old", "new"),
    [
        ("model.width", 32, "params.embed.embedding", (300, 16), (300, 32)),
        ("model.layers", 2, "params.layers.1.attention_norm.scale", "missing", (16,)),
        ("data.vocab_size", 280, "params.lm_head.kernel", (16, 300), (16, 280)),
        ("tables.optimizer", "sgd", "embed:embedding.col", (16,), "missing"),
    ],
)
def test_resume_of_another_model_or_optimizer_names_the_paths(
    config, setting, value, path, old, new
):
    train(config)
    group, name = setting.split(".")
    config[group][name] = value
    directory = Path(config.workdir, "ember")
    config.resume = True
    message = re.escape(f"{path} is {old} there, {new} here")
    with pytest.raises(ValueError, match=message):
        training.train(config, data.load(**config.data), directory)


@pytest.fixture
def python_handles_ctrl_c():
    """A shell starts background jobs, this suite perhaps, with SIGINT ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_second_ctrl_c_stops_at_once():
    with processes.stop_signals() as is_to_stop:
        assert not is_to_stop(1)
        signal.raise_signal(signal.SIGINT)
        assert is_to_stop(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_compare_prints_both_arms(config, capsys):
    results = examples.pretrain.run(config, compare=True)
    out = capsys.readouterr().out
    assert "embed/embedding" in out
    ember, adam = (
        next(line.split() for line in out.splitlines() if line.startswith(name))
        for name in ("ember", "adam")
    )
    assert ember[1] == f"{results['ember'].validation_loss:.4f}"
    assert adam[1] == f"{results['adam'].validation_loss:.4f}"
    assert ember[2] == f"{4 * (2 * (300 + 16) + 5):,}"
    assert adam[2] == f"{4 * (4 * 300 * 16 + 3):,}"
    plot = Path(config.workdir, "loss.png")
    assert f"Loss plot: {plot}" in out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_earlier_run_is_shown_beside(config, capsys):
    earlier = train(config)
    directory = str(Path(config.workdir, "ember"))
    config.workdir += "_2"
    examples.pretrain.run(config, beside=directory)
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith(directory))
    assert line.split()[1] == f"{earlier.validation_loss:.4f}"


def test_adam_arm_uses_its_own_tuned_settings(config):
    config.tables.update(embed_learning_rate=0.5, head_learning_rate=0.1, b2=0.9)
    config.tables.weight_decay = 0.1
    adam = examples.pretrain.with_adam_tables(config)
    assert adam.tables.optimizer == "adam"
    assert adam.tables.embed_learning_rate is None
    assert adam.tables.head_learning_rate is adam.tables.b2 is None
    assert adam.tables.weight_decay == 0.1
    assert adam.body.to_dict() == config.body.to_dict()
    assert config.tables.optimizer == "ember"


def test_interrupted_comparison_says_how_to_go_on(config, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        results = examples.pretrain.run(config, compare=True)
    assert list(results) == ["ember"]
    assert "Interrupted at step 2" in (out := capsys.readouterr().out)
    assert "--config.resume" in out
    config.resume = True
    assert list(examples.pretrain.run(config, compare=True)) == ["ember", "adam"]


@pytest.mark.filterwarnings(LOAD_MODULE)
def test_flags_override_the_config(monkeypatch):
    def parse(*arguments):
        values = flags.FlagValues()
        file = str(ROOT / "configs/pretrain_small.py")
        monkeypatch.setattr(sys, "argv", ["pretrain", f"--config={file}", *arguments])
        config_flags.DEFINE_config_file("config", flag_values=values)
        values(sys.argv)
        return values["config"].value

    config = parse(
        "--config.steps=7",
        "--config.tables.optimizer=adam",
        "--config.tables.embed_learning_rate=0.25",
        "--config.tables.head_learning_rate=0.02",
        "--config.body.optimizer=muon",
        "--config.data.path=a.txt,b/*.txt",
        "--config.model.tied",
        "--config.resume",
    )
    assert config.steps == 7
    assert config.tables.embed_learning_rate == 0.25
    assert config.tables.head_learning_rate == 0.02
    assert config.tables.b2 is None
    assert config.data.path == "a.txt,b/*.txt"
    assert config.model.tied
    assert config.resume
    with pytest.raises(AttributeError, match="stepz"):
        parse("--config.stepz=7")


def test_the_program_ends_cleanly_on_ctrl_c(config):
    """The one test of the real program: flags, signals, exit code, clean stderr."""
    command = [sys.executable, "-W", "error", "-W", LOAD_MODULE]
    command += ["-m", "examples.pretrain", "--config=configs/pretrain_small.py"]
    command += [f"--config.workdir={config.workdir}", "--config.steps=100000"]
    command += ["--config.mesh.fsdp=1"]
    command += [f"--config.data.{k}={v}" for k, v in config.data.items()]
    command += [f"--config.model.{k}={v}" for k, v in config.model.items() if v]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = Path(config.workdir, "ember", "metrics.jsonl")
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "To go on, repeat the command with --config.resume" in out
    lines = [line for line in err.replace("\r", "\n").split("\n") if line]
    assert all(line.startswith("ember:") for line in lines), err
    steps = os.listdir(Path(config.workdir, "ember", "checkpoints"))
    assert str(json.loads(metrics.read_text().splitlines()[-1])["step"]) in steps
