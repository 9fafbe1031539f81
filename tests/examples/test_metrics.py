"""Tests for examples/lm/metrics.py."""

import json
import struct

import pytest
from etils import epath

from examples.lm import metrics
from examples.lm.errors import UserError


@pytest.fixture(params=["local", "gs"])
def path(request, tmp_path):
    if request.param == "local":
        return epath.Path(tmp_path) / "run" / "metrics.jsonl"
    return epath.Path(request.getfixturevalue("bucket")) / "metrics.jsonl"


def test_records_are_written_and_later_ones_dropped(path):
    log = metrics.MetricsLog(path)
    for step in (1, 2, 3):
        log.add(step=step, loss=4.0 - step)
        log.write()
    log.write(everything=True)
    assert metrics.read(path) == log.records
    path.write_text(path.read_text() + '{"step": 4, "lo')  # killed while it wrote
    resumed = metrics.MetricsLog(path, 2)
    assert resumed.records == log.records[:2] == metrics.read(path)
    resumed.add(step=3, loss=0.5)
    resumed.close()
    assert [json.loads(x)["loss"] for x in path.read_text().splitlines()] == [3, 2, 0.5]
    assert metrics.MetricsLog(path).records == metrics.read(path) == []


@pytest.mark.parametrize("bad", ["", "[1]", "null", '{"loss": 2.0}', '{"step": "x"}'])
def test_a_damaged_log_is_named(tmp_path, bad):
    path = epath.Path(tmp_path) / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match="is damaged"):
        metrics.MetricsLog(path, 3)


def test_tensorboard_gets_the_records(tmp_path):
    log = metrics.MetricsLog(epath.Path(tmp_path) / "metrics.jsonl", tensorboard=True)
    log.add(step=1, validation_loss=3.5, seconds=1.0)
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert struct.pack("<f", 3.5) in file.read_bytes().partition(b"validation_loss")[2]
    assert b"seconds" not in file.read_bytes()


def test_the_plot_of_runs(path):
    path.parent.mkdir(parents=True)
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "validation_loss": 3}]
    assert metrics.last(records, "loss") == 1.0
    assert metrics.last(records, "seconds") is None
    plot = path.parent / "loss.png"
    metrics.plot(plot, {"a": records, "empty": []})
    assert plot.read_bytes().startswith(b"\x89PNG")
