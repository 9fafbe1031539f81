"""Runs that are killed, stopped, damaged or out of disk, and go on all the same."""

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import chex
import orbax.checkpoint as ocp
import pytest

from tests.examples.pretraining import (
    ROOT,
    checkpoint,
    complete_steps,
    losses,
    run_dir,
    train,
    wait_for_a_step,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")

SILENT: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
CAPTURED: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture(scope="module")
def finished() -> dict[str, Any]:
    """What finished runs leave, which every test would make alike."""
    return {}


@pytest.fixture
def trained(config, finished, tmp_path_factory) -> list[dict[str, float]]:
    """Puts a finished run into the directory of the config; returns its losses."""
    if "run" not in finished:
        train(config)
        finished["run"] = tmp_path_factory.mktemp("finished") / "run"
        shutil.copytree(run_dir(config), finished["run"])
    else:
        shutil.copytree(finished["run"], run_dir(config))
    return losses(config)


def start(arguments: list[str], **popen: Any) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, **popen)


def test_ten_kills_leave_the_same_parameters(config, pretrain):
    config.update(steps=200, batch_size=8, eval_every=20, checkpoint_every=200)
    workdir = config.workdir
    train(config, workdir=f"{workdir}_whole")
    expected = losses(config)
    whole = ocp.StandardCheckpointer().restore(checkpoint(config, 200) / "state")

    config.update(workdir=workdir, checkpoint_every=3)
    directory = run_dir(config) / "checkpoints"
    chance = random.Random(0)

    def in_start_up() -> float:
        return chance.uniform(0, 3)

    def in_steps() -> float:
        wait_for_a_step(config, process)
        return chance.uniform(0, 0.5)

    def in_checkpoint() -> float:
        wait_for_a_step(config, process)
        wait_until(lambda: list(directory.glob("*-tmp")), process)
        return chance.uniform(0, 0.05)

    moments = [in_start_up] * 2 + [in_steps] * 3 + [in_checkpoint] * 5
    chance.shuffle(moments)
    for number, moment in enumerate(moments, start=1):
        process = start(pretrain("--config.resume"), **SILENT)
        time.sleep(moment())
        assert process.poll() is None
        process.kill()
        process.wait()
        step = losses(config)[-1]["step"] if losses(config) else 0
        half_written = [p.name for p in directory.glob("*-tmp")]
        print(
            f"kill {number:2} {moment.__name__:13}: after step {step:2}, complete"
            f" checkpoints {complete_steps(config)}, half-written {half_written}"
        )
    assert start(pretrain("--config.resume"), **SILENT).wait() == 0
    assert losses(config) == expected
    final = ocp.StandardCheckpointer().restore(checkpoint(config, 200) / "state")
    chex.assert_trees_all_equal(final, whole)
    assert not list(directory.glob("*-tmp"))


def test_sigterm_saves_and_ends(config, pretrain):
    config.update(steps=300, eval_every=20, checkpoint_every=300)
    workdir = config.workdir
    train(config, workdir=f"{workdir}_whole")
    expected = losses(config)
    config.workdir = workdir
    process = start(pretrain(), **CAPTURED)
    wait_for_a_step(config, process)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (step,) = complete_steps(config)
    assert step < 300
    assert f"Interrupted at step {step}; a checkpoint is saved." in out
    train(config, resume=True)
    assert losses(config) == expected


def data_files(path: Path) -> list[Path]:
    """The arrays of a checkpoint, smallest file first, and not what describes them.

    Which bytes lie in which file depends on the timing of Orbax's writes.
    """
    files = (path / "state").glob("ocdbt.process_*/d/*")
    return sorted(files, key=lambda file: file.stat().st_size)


def flip_bytes(path: Path) -> None:
    for file in data_files(path):  # any of them may hold nothing but outdated nodes
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def change_a_value(path: Path) -> None:
    """As where a flipped byte escapes the checksums of the files."""
    checkpointer = ocp.StandardCheckpointer()
    state = checkpointer.restore(path / "state")
    table = state["params"]["embed"]["embedding"]
    state["params"]["embed"]["embedding"] = table.at[7, 3].add(1e-3)
    checkpointer.save(path / "state", state, force=True)
    checkpointer.wait_until_finished()


def truncate(path: Path) -> None:
    for file in data_files(path):
        os.truncate(file, file.stat().st_size // 2)


def delete(path: Path) -> None:
    for file in data_files(path):
        file.unlink()


def delete_metadata(path: Path) -> None:
    (path / "state" / "_METADATA").unlink()


def delete_arrays(path: Path) -> None:
    shutil.rmtree(path / "state")


def delete_all(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def change_position(path: Path) -> None:
    file = path / "batches" / "metadata"
    text = file.read_text()
    assert text.count("6") == 1
    file.write_text(text.replace("6", "5"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_a_value, "has other values than were saved"),
        # Whether the file's own checksums see it depends on which bytes lie there.
        (flip_bytes, "has other values than were saved|Error reading"),
        (truncate, "Error reading"),
        (delete, "Error reading"),
        (delete_metadata, "does not exist"),
        (delete_arrays, "does not exist"),
        (delete_all, "not found"),
        (change_position, "batches has other values than were saved"),
    ],
)
def test_the_checkpoint_before_a_damaged_one_is_used(
    config, trained, capsys, damage, reason
):
    damage(checkpoint(config, 6))
    train(config, resume=True)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert "The checkpoint of step 6 is damaged" in out
    assert re.search(reason, out)
    assert losses(config) == trained
    assert complete_steps(config) == [4, 6]
    assert len(list(checkpoint(config, 6).parent.glob("damaged-6-*"))) == 1
    train(config, resume=True)
    assert "damaged" not in capsys.readouterr().out


def test_the_same_step_damaged_twice(config, trained):
    for _ in range(2):
        delete_metadata(checkpoint(config, 6))
        train(config, resume=True)
        assert losses(config) == trained
    assert len(list(checkpoint(config, 6).parent.glob("damaged-6-*"))) == 2


def test_a_half_written_checkpoint_does_not_count(config, trained, capsys):
    path = checkpoint(config, 6)
    delete_arrays(path)
    path.rename(f"{path}.orbax-checkpoint-tmp")
    train(config, resume=True)
    assert "damaged" not in capsys.readouterr().out
    assert losses(config) == trained
    assert complete_steps(config) == [4, 6]


@pytest.mark.usefixtures("trained")
def test_all_checkpoints_damaged_is_an_error(config):
    directory = checkpoint(config, 6).parent
    for step in (4, 6):
        flip_bytes(checkpoint(config, step))
    before = sorted(directory.rglob("*")), losses(config)
    with pytest.raises(RuntimeError, match=f"No checkpoint in {directory} can be read"):
        train(config, resume=True)
    assert (sorted(directory.rglob("*")), losses(config)) == before


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A directory to mount a small file system on, where that is allowed."""
    directory = tmp_path / "small"
    directory.mkdir()
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(directory)]
    if not shutil.which("unshare") or subprocess.run(command, **SILENT).returncode:
        pytest.skip("mounting a file system is not allowed here")
    return directory


@pytest.mark.parametrize(
    ("limits", "checkpoint_every", "last"),
    [
        ("size=1300k", 4, r"of step \d+"),  # seen before a checkpoint is written
        ("nr_inodes=110", 4, r"of step \d+"),  # seen by Orbax, in the background
        ("size=8k", 1000, "none yet"),  # seen when a loss is logged
    ],
)
def test_a_full_disk_is_explained_and_leaves_the_last_checkpoint(
    config, pretrain, tmp_path, small_disk, finished, limits, checkpoint_every, last
):
    config.update(steps=200, eval_every=20, checkpoint_every=1000)
    if "long" not in finished:
        train(config)
        finished["long"] = losses(config)
    config.update(checkpoint_every=checkpoint_every, workdir=str(small_disk / "run"))
    config.keep_checkpoints = 100
    command = shlex.join([sys.executable, *pretrain()])
    script = f"""
        mount -t tmpfs -o {limits} tmpfs {small_disk}
        {command} || echo exit code $?
        cat {small_disk}/run/ember/metrics.jsonl >&2
        mount -o remount,size=100m,nr_inodes=0 {small_disk}
        {command} --config.resume --config.keep_checkpoints=1
        cp -r {small_disk}/run {tmp_path}/copy
    """
    ran = subprocess.run(["unshare", "-rm", "sh", "-ec", script], cwd=ROOT, **CAPTURED)
    assert ran.returncode == 0, ran.stderr
    assert "exit code 1" in ran.stdout
    assert "damaged" not in ran.stdout
    directory = re.escape(str(run_dir(config) / "checkpoints"))
    explained = (
        rf"The disk of {directory} is full, seen at step \d+\. The last complete"
    )
    assert re.search(rf"{explained} checkpoint is {last}\. Free some space", ran.stderr)
    config.workdir = str(tmp_path / "copy")
    assert losses(config) == finished["long"]
