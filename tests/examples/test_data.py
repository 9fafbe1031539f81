"""Tests for examples/lm/data.py and examples/lm/token_files.py."""

import functools
import os
import re

import fsspec
import numpy as np
import pytest

from examples.lm import data
from examples.lm.errors import UserError

IDS = np.arange(1000, dtype=np.int64) * 7 % 300


def write_llmc(path, ids, dtype="<u2", count=None, magic=None, version=None):
    header = np.zeros(256, "<i4")
    known = (20240520, 1) if dtype == "<u2" else (20240801, 7)
    header[:2] = magic or known[0], version or known[1]
    header[2] = len(ids) if count is None else count
    path.write_bytes(header.tobytes() + ids.astype(dtype).tobytes())


def write_raw(path, ids, dtype="<u2"):
    path.write_bytes(ids.astype(dtype).tobytes())


WRITERS = {
    "llmc_16.bin": write_llmc,
    "llmc_32.bin": functools.partial(write_llmc, dtype="<u4"),
    "nanogpt.bin": write_raw,
    "olmo.npy": write_raw,
    "numpy_16.npy": lambda path, ids: np.save(path, ids.astype("<u2")),
    "numpy_64.npy": np.save,
    "numpy_big.npy": lambda path, ids: np.save(path, ids.astype(">i4")),
}


@pytest.fixture
def shards(tmp_path):
    """A shard in each format, with ids that no other shard has at the same place."""
    for i, (name, write) in enumerate(WRITERS.items()):
        write(tmp_path / name, (IDS + 41 * i) % 300)
    return tmp_path


def source(path, length=16, vocab_size=300, **settings):
    return data.open_source(str(path), length, vocab_size, **settings)


def test_raw_files_have_the_dtype_of_the_config(tmp_path):
    write_raw(tmp_path / "raw.bin", IDS, dtype="<u4")
    windows = source(tmp_path / "raw.bin", dtype="uint32")
    assert len(windows) == 62
    for i in (0, 17, 61):
        np.testing.assert_array_equal(windows[i], IDS[16 * i : 16 * i + 17])


def test_windows_are_numbered_over_all_files(shards):
    windows = source(f"{shards}/*.bin,{shards}/*.npy", length=100)
    names = [os.path.basename(file.path) for file in windows.files]
    assert names == sorted(names, key=lambda name: (".npy" in name, name))
    assert len(windows) == 9 * len(WRITERS)
    for i in range(len(windows)):
        shift = 41 * [*WRITERS].index(names[i // 9])
        start = i % 9 * 100
        np.testing.assert_array_equal(
            windows[i], (IDS[start : start + 101] + shift) % 300
        )


def take(batches, n):
    return [next(batches) for _ in range(n)]


def test_an_epoch_has_every_window_once(shards):
    windows = source(f"{shards}/*")
    batches = data.train_batches([windows], 31, seed=3)
    per_epoch = len(windows) // 31
    epochs = [np.concatenate(take(batches, per_epoch)) for _ in range(2)]
    every = np.stack([windows[i] for i in range(len(windows))])
    for epoch in epochs:
        assert {w.tobytes() for w in epoch} == {w.tobytes() for w in every}
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("weights", [(), (3.0, 1.0)])
def test_processes_share_the_batches_and_their_position(shards, weights):
    sources = [source(shards / "llmc_16.bin"), source(shards / "numpy_64.npy")]

    def batches(rows=data.ALL):
        return data.train_batches(sources, 8, 0, weights, rows)

    straight = batches()
    expected = take(straight, 6)
    halves = [batches(np.array([0, 1, 6, 7])), batches(np.array([2, 3, 4, 5]))]
    for batch in expected[:4]:
        first, second = (next(half) for half in halves)
        np.testing.assert_array_equal(first, batch[[0, 1, 6, 7]])
        np.testing.assert_array_equal(second, batch[2:6])
    position = halves[0].get_state()
    assert position == halves[1].get_state()
    alone = batches()
    alone.set_state(position)
    np.testing.assert_array_equal(take(alone, 2), expected[4:])


def test_weights_are_the_shares_of_the_sources(tmp_path):
    write_llmc(tmp_path / "a.bin", np.zeros(1000))
    write_llmc(tmp_path / "b.bin", np.ones(100_000))
    sources = [source(tmp_path / "a.bin"), source(tmp_path / "b.bin")]
    batches = data.train_batches(sources, 20, 0, [3.0, 1.0])
    assert np.mean(take(batches, 10)) == 0.25
    mixed = data.train_batches(sources, 20, 0)
    assert np.mean(take(mixed, 10)) > 0.9


def test_validation_batches_are_the_same_every_time(shards):
    windows = source(f"{shards}/*.bin")
    first, again = (data.validation_batches(windows, 8, 3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    rows = data.validation_batches(windows, 8, 3, np.array([5]))
    np.testing.assert_array_equal(np.stack(rows)[:, 0], np.stack(first)[:, 5])
    small = source(shards / "olmo.npy", length=500)
    (batch,) = data.validation_batches(small, 8, 3)
    assert batch.shape == (8, 501)


def refused(pattern, length=16, **settings):
    with pytest.raises(UserError) as caught:
        source(pattern, length, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def save(path, array):
    with path.open("wb") as file:
        np.save(file, array)


BROKEN = {
    "truncated": lambda p: os.truncate(p, 1500),
    "odd": lambda p: os.truncate(p, 1501),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"12"),
    "empty": lambda p: os.truncate(p, 0),
    "lying": lambda p: write_llmc(p, IDS, count=999),
    "zero": lambda p: write_llmc(p, IDS, count=0),
    "negative": lambda p: write_llmc(p, IDS, count=-1),
    "no_tokens": lambda p: write_llmc(p, IDS[:0]),
    "wrong_width": lambda p: write_llmc(p, IDS, "<u2", magic=20240801),
    "wrong_version": lambda p: write_llmc(p, IDS, version=2),
    "matrix": lambda p: save(p, np.asfortranarray(IDS.reshape(10, 100))),
    "floats": lambda p: save(p, IDS * 0.5),
    "numpy_cut": lambda p: (save(p, IDS), os.truncate(p, 400)),
    "numpy_header": lambda p: p.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': 3"),
    "numpy_version": lambda p: p.write_bytes(b"\x93NUMPY\x09\x09" + bytes(200)),
    "objects": lambda p: save(p, np.array([[], 1], object)),
    "dangling": lambda p: (p.unlink(), p.symlink_to("none")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_shard_is_refused_by_name(shards, name):
    path = shards / "llmc_16.bin"
    BROKEN[name](path)
    assert str(path) in refused(shards / "*")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        *((end, "names no file") for end in ("none.bin", "x/*.bin", "", "[", "**/no")),
        ("*.bin,,", "'' names no file"),
        ("a\0b", "names no file"),
        ("*.bin,{}/llmc_16.bin", "twice"),
        ("*.bin,{}/../{}/llmc_16.bin", "twice"),
        ("*.bin,s3://bucket/x", "s3fs"),
        ("*.bin,unknown://x", "cannot be read"),
    ],
)
def test_odd_patterns_are_refused(shards, pattern, words):
    pattern = pattern.replace("{}", str(shards), 1).replace("{}", shards.name)
    assert words in refused(f"{shards}/{pattern}")


def test_globs_follow_links_and_leave_out_directories_and_hidden_files(shards):
    (shards / "deep [1]").mkdir()
    write_llmc(shards / "deep [1]" / "a[1]*.bin", IDS)
    write_llmc(shards / ".hidden.bin", IDS)
    (shards / "link.bin").symlink_to(shards / "deep [1]" / "a[1]*.bin")
    (shards / "directory.bin").mkdir()
    names = [os.path.basename(x.path) for x in source(f"{shards}/[dl]*.bin").files]
    assert names == ["link.bin", "llmc_16.bin", "llmc_32.bin"]
    assert len(source(f"{shards}/deep [1]/a[1]*.bin")) == 62
    assert "twice" in refused(f"{shards}/**")


def test_too_few_tokens_and_odd_weights_are_refused(shards):
    assert "no window" in refused(shards / "*", length=1000)
    sources = [source(shards / name) for name in ("olmo.npy", "llmc_16.bin")]
    for weights in ((0.0, 1.0), (-1.0, 1.0), ("a", 1.0), (float("nan"), 1.0)):
        with pytest.raises(UserError, match="positive numbers"):
            data.train_batches(sources, 1, 0, weights)


@pytest.mark.parametrize("bad", [-1, 300, 65_535])
def test_an_id_outside_the_vocabulary_is_refused_by_file(shards, bad):
    ids = IDS.copy()
    ids[500] = bad
    np.save(shards / "numpy_64.npy", ids)
    batches = data.train_batches([source(shards / "*")], 31, 0)
    with pytest.raises(
        UserError, match=re.escape(f"numpy_64.npy has the token id {bad} after")
    ):
        take(batches, 20)


def test_a_file_that_is_truncated_meanwhile_is_named(shards):
    batches = data.train_batches([source(shards / "*")], 31, 0)
    os.truncate(shards / "olmo.npy", 100)
    with pytest.raises(UserError, match="has been truncated"):
        take(batches, 20)


def test_windows_in_a_bucket(shards, bucket):
    fs = fsspec.filesystem("gs")
    for name in WRITERS:
        fs.put_file(str(shards / name), f"{bucket}/{name}")
    local, remote = source(f"{shards}/*"), source(f"{bucket}/*")
    batches = [data.train_batches([x], 31, 0) for x in (local, remote)]
    np.testing.assert_array_equal(*(take(x, 3) for x in batches))
    # A fingerprint follows the text and not its place.
    assert data.fingerprint([local]) == data.fingerprint([remote])
    write_llmc(shards / "llmc_16.bin", IDS[::-1])
    changed = data.fingerprint([source(f"{shards}/*")])
    assert changed["tokens"] == data.fingerprint([local])["tokens"] == 7000
    assert changed["digest"] != data.fingerprint([local])["digest"]

    assert "names no file" in refused(f"{bucket}/*.txt")
    fs.pipe_file(f"{bucket}/numpy_16.npy", b"cut")
    with pytest.raises(UserError, match="numpy_16"):
        take(data.train_batches([remote], 31, 0), 20)
    assert f"{bucket}/numpy_16.npy" in refused(f"{bucket}/*")
