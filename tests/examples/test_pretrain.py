"""Tests for the program examples/pretrain.py, run as users run it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import examples.pretrain
from examples.lm.errors import UserError
from examples.tools.launch import launch
from tests.examples.pretraining import (
    assert_same,
    losses,
    params,
    run,
    run_dir,
    steps,
    wait_until,
)

ROOT = Path(__file__).parents[2]
CAPTURED: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, **CAPTURED)


def finish(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return out, err


def test_two_arms(pretrain, config):
    config.update(steps=8, tensorboard=True)
    arguments = pretrain("--compare", "--config.overwrite")
    out, _ = finish(start(arguments))
    workdir = Path(config.workdir)
    for arm in ("ember", "adam"):
        assert re.search(rf"{arm} +\d\.\d{{4}} +[\d,]+ bytes +\d+ s", out)
        assert f"--- {arm} continues ---" in out
        (board,) = (workdir / arm / "tensorboard").iterdir()
        assert (b"embed/embedding/grad_p50" in board.read_bytes()) == (arm == "ember")
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "embed/embedding" in out  # the summary of the tables
    assert run_dir(config).name == "ember"
    assert [step for step, _ in losses(config)] == [*range(1, 9)]

    _, err = finish(start(pretrain()), code=1)
    assert err.strip().endswith("give another --config.workdir.")
    assert "Traceback" not in err


MISTAKES = {
    "names no file": {"data.path": "none/*.bin"},
    "is 17, but the tokenizer": {"data.vocab_size": 17},
    "need a multiple of 2": {"batch_size": 3, "mesh.fsdp": 2},
    "no window of sequence_length 100000": {"sequence_length": 100_000},
    "the text has only": {"batch_size": 2**20},
    "config.model.heads is 3": {"model.heads": 3},
    "config.model.kv_heads is 4": {"model.kv_heads": 4},
    "config.loss_chunks is 3": {"loss_chunks": 3},
    "must be one of auto": {"model.attention": "flash"},
    "must be one of ember": {"tables.optimizer": "lion"},
    "must be positive": {"steps": 0},
    "cannot be read as a tokenizer": {"data.tokenizer": "none.json"},
    "does not fit 8 devices": {"mesh.fsdp": 3, "mesh.tensor": 3},
    "has 2 numbers": {"data.weights": (1.0, 2.0)},
    "keep_checkpoints is 0": {"keep_checkpoints": 0},
    "give only": {"resume": True, "overwrite": True},
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_found_before_training(config, words):
    config.update_from_flattened_dict(MISTAKES[words])
    with pytest.raises(UserError, match=words):
        examples.pretrain.run(config)
    assert not run_dir(config).exists() or not any(run_dir(config).iterdir())


def test_an_unknown_flag_gets_a_suggestion(pretrain):
    _, err = finish(start(pretrain("--config.stepz=3")), code=1)
    assert re.search(r"no field .*stepz.*\sDid you mean.*steps", err)
    assert "Traceback" not in err


def test_help_shows_an_example_and_flags():
    process = start(["-m", "examples.pretrain", "--help"])
    out, _ = process.communicate(timeout=60)
    assert "--config=configs/pretrain_small.py" in out
    assert "--config.tables.embed_learning_rate" in out


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)],
)
def test_a_signal_saves_and_ends(pretrain, config, number):
    config.update(steps=100_000, checkpoint_every=50_000, eval_every=50_000)
    config.log_every = 1
    process = start(pretrain())
    log = run_dir(config) / "metrics.jsonl"
    wait_until(lambda: log.exists() and log.stat().length, process)
    process.send_signal(number)
    out, _ = finish(process)
    (step,) = steps(config)
    assert f"Interrupted at step {step}" in out
    assert [s for s, _ in losses(config)] == [*range(1, step + 1)]


@pytest.mark.nightly
def test_kill_and_resume(pretrain, config):
    config.update(steps=60, checkpoint_every=4)
    run(config, workdir=f"{config.workdir}_straight")
    for _ in range(3):
        process = start(pretrain("--config.resume"))
        before = max(steps(config), default=0)
        wait_until(lambda b=before: max(steps(config), default=0) > b, process)
        process.kill()
        process.communicate()
    finish(start(pretrain("--config.resume")))
    killed = params(config, 60)
    log = losses(config)
    config.workdir += "_straight"
    assert_same(killed, params(config, 60))
    assert losses(config) == log


@pytest.fixture
def pod(config):
    """A config for two processes with two devices each."""
    config.update(steps=200, batch_size=8, checkpoint_every=100, eval_every=1000)
    config.model.pad_vocab_to_multiple_of = 8
    config.mesh.update(fsdp=2, tensor=2)
    config.log_every = 1
    return config


def test_two_processes_stop_at_the_same_step_and_one_continues(pretrain, pod):
    arguments = pretrain("--config.resume")
    with launch(arguments, 2, 2, cwd=ROOT, **CAPTURED) as started:
        log = run_dir(pod) / "metrics.jsonl"
        wait_until(lambda: log.exists() and log.stat().length, started[0])
        started[1].send_signal(signal.SIGTERM)
        out = [finish(process)[0] for process in started]
    (step,) = steps(pod)[-1:]
    assert 0 < step < 200
    assert f"Interrupted at step {step}" in out[0]
    assert "token table" not in out[1]  # only one of them prints
    pod.update(steps=step + 2, eval_every=step + 2)
    pod.mesh.update(fsdp=1, tensor=1)
    run(pod, resume=True)
    continued = losses(pod)
    assert [s for s, _ in continued] == [*range(1, step + 3)]
    pod.workdir += "_alone"
    pod.steps = 200  # the length of the schedule
    alone = [r["loss"] for r in run(pod).records if "loss" in r][:step]
    assert alone == pytest.approx([loss for _, loss in continued[:step]], abs=1e-5)


@pytest.mark.nightly
def test_a_process_that_fails_ends_the_others(pretrain, pod, tmp_path):
    pod.data.path = str(tmp_path / "none.bin")
    with launch(pretrain(), 2, 2, cwd=ROOT, **CAPTURED) as started:
        for process in started:
            _, err = finish(process, code=1)
            assert "names no file" in err
            assert "Traceback" not in err


@pytest.mark.nightly
def test_wrong_cluster_settings_are_a_line(pretrain, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "x")
    _, err = finish(start(pretrain()), code=1)
    assert "JAX_PROCESS_ID 'x'" in err
    assert os.linesep + "Traceback" not in err
