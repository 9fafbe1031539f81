"""Runs that are killed, stopped, damaged or out of disk, and go on all the same."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import orbax.checkpoint as ocp
import pytest

from examples.lm import data, training

pytestmark = pytest.mark.usefixtures("standard_promotion")

ROOT = Path(__file__).parents[2]
SILENT: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
CAPTURED: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def train(config, **settings):
    config.update(settings)
    return training.train(config, data.load(**config.data), run_dir(config))


def run_dir(config) -> Path:
    return Path(config.workdir, config.tables.optimizer)


def checkpoint(config, step: int) -> Path:
    return run_dir(config) / "checkpoints" / str(step)


def complete_steps(config) -> list[int]:
    directory = run_dir(config) / "checkpoints"
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit())


def losses(config) -> list[dict[str, float]]:
    """All that the log of a run holds, without the clock."""
    lines = (run_dir(config) / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def wait_until(condition: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def start(arguments: list[str], **popen: Any) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, **popen)


def test_ten_kills_leave_the_same_parameters(config, pretrain):
    config.update(steps=200, batch_size=8, eval_every=20, checkpoint_every=200)
    workdir = config.workdir
    train(config, workdir=f"{workdir}_whole")
    expected = losses(config)
    whole = ocp.StandardCheckpointer().restore(checkpoint(config, 200) / "state")

    config.update(workdir=workdir, checkpoint_every=3)
    log = run_dir(config) / "metrics.jsonl"
    chance = random.Random(0)

    def in_start_up() -> float:
        return chance.uniform(0, 3)

    def in_steps() -> float:
        size = log.stat().st_size if log.exists() else 0
        wait_until(lambda: log.exists() and log.stat().st_size > size, process)
        return chance.uniform(0, 0.5)

    def in_checkpoint() -> float:
        newest = max(complete_steps(config), default=0)
        wait_until(lambda: max(complete_steps(config), default=0) > newest, process)
        wait_until(lambda: list(log.parent.glob("checkpoints/*-tmp")), process)
        return chance.uniform(0, 0.03)

    moments = [in_start_up] * 2 + [in_steps] * 3 + [in_checkpoint] * 5
    chance.shuffle(moments)
    for number, moment in enumerate(moments, start=1):
        process = start(pretrain("--config.resume"), **SILENT)
        time.sleep(moment())
        assert process.poll() is None
        process.kill()
        process.wait()
        step = losses(config)[-1]["step"] if log.exists() else 0
        written = sorted(p.name for p in log.parent.glob("checkpoints/*-tmp"))
        print(
            f"kill {number:2}, {moment.__name__:13}: after step {step:3.0f}, complete"
            f" checkpoints {complete_steps(config)}, half-written {written}"
        )
    assert start(pretrain("--config.resume"), **SILENT).wait() == 0
    assert losses(config) == expected
    final = ocp.StandardCheckpointer().restore(checkpoint(config, 200) / "state")
    chex.assert_trees_all_equal(final, whole)
    assert not list(log.parent.glob("checkpoints/*-tmp"))


def test_sigterm_saves_and_ends(config, pretrain):
    config.update(steps=20, checkpoint_every=20)
    workdir = config.workdir
    train(config, workdir=f"{workdir}_whole")
    expected = losses(config)
    config.update(workdir=workdir, steps=100_000)  # it cannot end before the signal
    log = run_dir(config) / "metrics.jsonl"
    process = start(pretrain(), **CAPTURED)
    wait_until(lambda: log.exists() and log.stat().st_size, process)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    step = losses(config)[-1]["step"]
    assert f"Interrupted at step {step}; a checkpoint is saved." in out
    assert complete_steps(config) == [step]


def biggest(directory: Path) -> Path:
    return max(directory.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)


def flip_a_byte(path: Path) -> None:
    file = biggest(path / "state")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(path: Path) -> None:
    file = biggest(path / "state")
    os.truncate(file, file.stat().st_size // 2)


def delete(path: Path) -> None:
    biggest(path / "state").unlink()


def delete_metadata(path: Path) -> None:
    (path / "state" / "_METADATA").unlink()


def delete_arrays(path: Path) -> None:
    shutil.rmtree(path / "state")


def delete_all(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def change_position(path: Path) -> None:
    file = path / "batches" / "metadata"
    assert (text := file.read_text()).count("6") == 1
    file.write_text(text.replace("6", "5"))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        truncate,
        delete,
        delete_metadata,
        delete_arrays,
        delete_all,
        change_position,
    ],
)
def test_the_checkpoint_before_a_damaged_one_is_used(config, capsys, damage):
    train(config)
    expected = losses(config)
    for times in (1, 2):  # the same step twice
        damage(checkpoint(config, 6))
        train(config, resume=True)
        assert "The checkpoint of step 6 is damaged" in capsys.readouterr().out
        assert losses(config) == expected
        assert complete_steps(config) == [4, 6]
        assert len(list(checkpoint(config, 6).parent.glob("damaged-6-*"))) == times
        train(config, resume=True)
        assert "damaged" not in capsys.readouterr().out
        time.sleep(1)


def test_a_half_written_checkpoint_does_not_count(config, capsys):
    train(config)
    expected = losses(config)
    path = checkpoint(config, 6)
    shutil.rmtree(path / "state")
    path.rename(f"{path}.orbax-checkpoint-tmp")
    train(config, resume=True)
    assert "damaged" not in capsys.readouterr().out
    assert losses(config) == expected
    assert complete_steps(config) == [4, 6]


def test_all_checkpoints_damaged_is_an_error(config):
    train(config)
    directory = checkpoint(config, 6).parent
    for step in (4, 6):
        flip_a_byte(checkpoint(config, step))
    before = sorted(directory.rglob("*"))
    log = losses(config)
    with pytest.raises(RuntimeError, match=f"No checkpoint in {directory} can be read"):
        train(config, resume=True)
    assert sorted(directory.rglob("*")) == before
    assert losses(config) == log
