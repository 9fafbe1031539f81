"""What is kept of a corpus mends itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.lm import cache, data
from tests.examples.pretraining import ROOT


def load(config) -> data.Tokens:
    return data.load(**config.data)


def entry(config) -> Path:
    (directory,) = Path(config.data.cache_dir).iterdir()
    return directory


def files(config) -> set[str]:
    return {path.name for path in entry(config).iterdir()}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replace_with_noise(file: Path) -> None:
    file.write_bytes(b"noise" * 100)


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("name", ["tokens.npz", "tokenizer.json"])
@pytest.mark.parametrize(
    "damage", [truncate, empty, flip_a_byte, replace_with_noise, remove]
)
def test_a_damaged_file_is_made_again(config, capsys, name, damage):
    whole = load(config)
    assert capsys.readouterr().out == ""
    damage(entry(config) / name)
    again = load(config)
    said = capsys.readouterr().out
    assert f"The cache {entry(config)} is damaged" in said
    assert said.count("\n") == 1
    assert again.tokenizer == whole.tokenizer
    for a, b in zip(again, whole, strict=True):
        np.testing.assert_array_equal(a, b)
    load(config)
    assert capsys.readouterr().out == ""
    assert data.load_tokenizer(**config.data).to_str() == whole.tokenizer


def test_a_lost_array_is_made_again(config, capsys):
    whole = load(config)
    np.savez(entry(config) / "tokens.npz", train=whole.train)
    assert load(config).validation.size
    assert "is damaged" in capsys.readouterr().out


KILLED = """
import os, signal
import numpy as np
from examples.lm import data
def savez(file, **_):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
np.savez = savez
data.load({path!r}, 300, cache_dir={cache!r})
"""


def test_what_a_killed_run_has_left_is_removed(config, capsys):
    path, directory = config.data.path, config.data.cache_dir
    code = KILLED.format(path=path, cache=directory)
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    assert "tokens.npz.tmp" in files(config)
    assert load(config).train.size
    assert files(config) == {"lock", "tokens.npz", "tokenizer.json"}
    assert "is damaged" in capsys.readouterr().out


def test_a_cache_that_may_only_be_read_will_do(config, monkeypatch):
    load(config)
    monkeypatch.delattr(cache, "lock")
    assert load(config).train.size


TWICE = """
from examples.lm import data
make = data.train_tokenizer
def train_tokenizer(*args):
    print("made", flush=True)
    return make(*args)
data.train_tokenizer = train_tokenizer
data.load({path!r}, 300, cache_dir={cache!r})
"""


def test_of_two_processes_one_makes_it(config):
    code = TWICE.format(path=config.data.path, cache=config.data.cache_dir)
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=-1, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(printed) == ["", "made\n"]
