"""Training in several processes, as on a pod: one program, started on every host."""

import signal
import subprocess
import sys
from typing import Any

import pytest
from ml_collections import ConfigDict

from examples.lm import Config
from examples.tools.launch import launch
from tests.examples.pretraining import (
    ROOT,
    at_step,
    checkpoint,
    complete_steps,
    losses,
    train,
    wait_for_a_step,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")

CAPTURED: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@pytest.fixture
def config(config: Config) -> Config:
    """A batch for eight devices, which may belong to two processes."""
    config.update(steps=16, batch_size=8, checkpoint_every=4, eval_every=4)
    config.model.vocab_multiple = 8
    config.mesh.update(fsdp=4, tensor=2)
    return config


def finish(started: list[subprocess.Popen]) -> list[str]:
    """Returns what each process has printed, once all have ended well."""
    printed = [process.communicate(timeout=120) for process in started]
    for process, (_, err) in zip(started, printed, strict=True):
        assert process.returncode == 0, err
    return [out for out, _ in printed]


def run(arguments: list[str]) -> list[str]:
    """Trains in two processes with four devices each."""
    with launch(arguments, 2, 4, cwd=ROOT, **CAPTURED) as started:
        return finish(started)


def losses_on_one_device(config: Config) -> list[dict[str, float]]:
    config = ConfigDict(config.to_dict())
    config.mesh.update(fsdp=1, tensor=1)
    config.workdir += "_one"
    train(config)
    return losses(config)


def difference(config: Config, expected: list[dict[str, float]]) -> float:
    """Returns the greatest relative difference of the losses so far."""
    found = losses(config)
    expected = expected[: len(found)]
    assert [list(r) for r in found] == [list(r) for r in expected]
    pairs = zip(found, expected, strict=True)
    return max(abs(a[k] / b[k] - 1) for a, b in pairs for k in a if "loss" in k)


def test_two_processes(config: Config, pretrain: Any) -> None:
    """One run of them is compared with many: starting processes takes long."""
    primary, other = run(pretrain())
    for text in ("token table", "tokens to train on", "validation loss"):
        assert text in primary
        assert text not in other
    assert difference(config, losses_on_one_device(config)) < 1e-5
    whole = losses(config)

    # Files that only one of them may need.
    for file in (checkpoint(config, 16) / "state").glob("ocdbt.process_1/d/*"):
        file.unlink()
    primary, other = run(pretrain("--config.resume"))
    assert "The checkpoint of step 16 is damaged" in primary
    assert "damaged" not in other
    assert losses(config) == whole

    config.workdir += "_stopped"
    with launch(pretrain(), 2, 4, cwd=ROOT, **CAPTURED) as started:
        wait_for_a_step(config, started[0])
        started[1].send_signal(signal.SIGTERM)
        primary, other = finish(started)
    step = complete_steps(config)[-1]
    assert step < 16
    assert f"Interrupted at step {step}; a checkpoint is saved." in primary
    assert "Interrupted" not in other
    run(pretrain("--config.resume"))
    assert losses(config) == whole


def test_ctrl_c_on_the_launcher(config: Config, pretrain: Any) -> None:
    config.steps = 1000
    command = [sys.executable, "-m", "examples.tools.launch", "--", *pretrain()]
    launcher = subprocess.Popen(command, cwd=ROOT, **CAPTURED)
    wait_for_a_step(config, launcher)
    launcher.send_signal(signal.SIGINT)
    (out,) = finish([launcher])
    assert f"Interrupted at step {complete_steps(config)[-1]}" in out


def test_resume_on_a_mesh_is_bitwise_equal(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config)
    whole = losses(config)
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: signal.raise_signal(signal.SIGINT))
        train(config)
    assert complete_steps(config)[-1] == 6
    train(config, resume=True)
    assert losses(config) == whole


def test_a_run_moves_to_other_meshes_and_processes(
    config: Config, pretrain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = losses_on_one_device(config)
    meshes = [{"fsdp": 4, "tensor": 2}, {"fsdp": 2, "tensor": 2}, {"fsdp": 1}]
    for stage, mesh in enumerate(meshes):
        config.mesh.update({"tensor": 1} | mesh)
        step = 4 * (stage + 1)
        with monkeypatch.context() as patch:
            at_step(patch, step, lambda: signal.raise_signal(signal.SIGINT))
            train(config, resume=stage > 0)
        assert complete_steps(config)[-1] == step
        print(f"{mesh}: {difference(config, expected):.1e}")
        assert difference(config, expected) < 1e-5
    run(pretrain("--config.resume", "--config.mesh.fsdp=4", "--config.mesh.tensor=2"))
    assert complete_steps(config)[-1] == 16
    print(f"two processes: {difference(config, expected):.1e}")
    assert difference(config, expected) < 1e-5
