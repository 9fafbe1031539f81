"""Tests for examples/lm/checkpoints.py, and of resuming runs from them."""

import gc
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from examples.lm import checkpoints
from examples.lm.errors import UserError
from tests.examples.pretraining import (
    assert_same,
    largest_file,
    losses,
    params,
    run,
    run_dir,
    steps,
)

# Orbax abandons its other reads when one fails.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(params=["local", "gs"])
def stored(request, config):
    """The config of a run on a disk, then in a bucket."""
    if request.param == "gs":
        config.workdir = request.getfixturevalue("bucket")
    config.resume = True
    return config


def test_a_resumed_run_equals_a_straight_one(stored):
    run(stored, resume=False)
    straight, log = params(stored, 6), losses(stored)
    assert steps(stored) == [4, 6]
    assert [step for step, _ in log] == [1, 2, 3, 4, 5, 6]
    (run_dir(stored) / "checkpoints" / "6").rmtree()
    (run_dir(stored) / "metrics.jsonl").write_text(
        (run_dir(stored) / "metrics.jsonl").read_text() + '{"step": 7, "lo'
    )
    result = run(stored)
    assert_same(params(stored, 6), straight)
    assert losses(stored) == log
    assert result.step == 6
    assert run(stored).step == 6  # there is nothing to do
    assert losses(stored) == log


@pytest.mark.nightly
def test_another_mesh_and_kernel_resume(config):
    config.batch_size = 8
    result = run(config)
    (run_dir(config) / "checkpoints" / "6").rmtree()
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    resumed = run(config, resume=True, mesh=mesh, model={"remat": "full"})
    pairs = zip(result.records, resumed.records, strict=True)
    for a, b in pairs:
        for name in a.keys() - {"seconds"}:
            assert a[name] == pytest.approx(b[name], abs=1e-5)


def flip_a_bit(file: epath.Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "stored", ["local", pytest.param("gs", marks=pytest.mark.nightly)], indirect=True
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damage_is_found_and_the_step_before_used(stored, capfd):
    run(stored, resume=False)
    checkpoint = run_dir(stored) / "checkpoints" / "6"
    straight, found = params(stored, 6), 0
    for seed in range(3):
        if seed < 2:
            flip_a_bit(largest_file(checkpoint), random.Random(seed))
        else:
            largest_file(checkpoint).unlink()
        run(stored)
        found += "Checkpoint 6 is damaged" in capfd.readouterr().out
        # A flip between the arrays does no harm.
        assert_same(params(stored, 6), straight)
    assert found > 1
    assert (run_dir(stored) / "damaged_6").exists()
    for step in (4, 6):
        (run_dir(stored) / "checkpoints" / str(step) / "facts").rmtree()
    with pytest.raises(UserError, match="no checkpoint that can be read"):
        run(stored)
    # Where one of Orbax's reads fails, it abandons the others; collecting them is a
    # warning, which would be an error of a later test.
    gc.collect()


@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_every_single_bit_changes_the_checksum(itemsize):
    bits = np.random.default_rng(0).integers(0, 256, 64 * itemsize, np.uint8)
    dtype = {1: np.uint8, 2: jnp.bfloat16, 4: np.float32}[itemsize]

    def checksum() -> int:
        with jax.set_mesh(jax.make_mesh((1,), ("a",))):
            sums, _ = checkpoints._inspect({"x": bits.view(dtype), "y": jnp.ones(1)})
        return int(sums[0])

    before = checksum()
    for place in range(0, bits.size * 8, 37):
        bits[place // 8] ^= 1 << place % 8
        assert checksum() != before
        bits[place // 8] ^= 1 << place % 8


def test_a_used_directory_is_for_the_same_run(config, tokens):
    run(config, steps=2)
    for change, words in (
        ({"model": {"width": 32}}, "model.width was 16 and is 32"),
        ({"tables": {"weight_decay": 0.1}}, "tables.weight_decay was 0.0 and is 0.1"),
        ({"body": {"optimizer": "muon"}}, "body.optimizer was 'adamw' and is 'muon'"),
        ({"batch_size": 4}, "batch_size was 2 and is 4"),
        ({"seed": 1}, "seed was 0 and is 1"),
    ):
        with pytest.raises(UserError, match=words):
            run(config, resume=True, **change)

    moved = epath.Path(config.workdir) / "0.bin"
    content = (epath.Path(str(tokens)) / "train" / "0.bin").read_bytes()
    moved.write_bytes(content)
    run(config, resume=True, steps=2, data={"path": str(moved)})
    moved.write_bytes(content[:1100] + b"\1" + content[1101:])
    with pytest.raises(UserError, match=r"text\.digest was"):
        run(config, resume=True, data={"path": str(moved)})
    moved.write_bytes(content)
    with pytest.raises(UserError, match="positive numbers"):  # before it deletes a run
        run(config, data={"path": f"{moved},{config.data.path}", "weights": (0.0, 1.0)})
    assert steps(config) == [2]
    with pytest.raises(UserError, match=r"--config\.resume"):
        checkpoints.open_directory(config, "ember")
    with checkpoints.locked(run_dir(config), overwrite=True):
        assert [p.name for p in run_dir(config).iterdir()] == ["lock"]


def test_a_state_that_is_not_finite_is_not_saved(config):
    with pytest.raises(UserError, match=r"diverged at step \d"):
        run(config, tables={"embed_learning_rate": 1e38}, body={"learning_rate": 1e38})
    assert steps(config) in ([], [2])


def test_a_second_run_is_refused(config):
    run_dir(config).mkdir(parents=True)
    with (
        checkpoints.locked(run_dir(config), overwrite=False),
        pytest.raises(UserError, match="Another run uses"),
        checkpoints.locked(run_dir(config), overwrite=False),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workdir": "s3://bucket/run"}, "Mount the bucket"),
        ({"workdir": "gs://bucket/run", "tensorboard": True}, "tensorboard"),
        ({"workdir": __file__}, "cannot be used"),
        ({"workdir": "/proc/run"}, "cannot be used"),
        ({"workdir": "unknown://run"}, "cannot be used"),
    ],
)
def test_a_directory_that_cannot_be_used_is_named(config, settings, words):
    config.update(settings)
    with pytest.raises(UserError, match=words):
        checkpoints.open_directory(config, "ember")
