"""No invented numbers: a log is read whole, or its bad line is named."""

import json
import re
import struct
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

import examples.pretrain
from examples.lm import metrics
from examples.lm.errors import UserError

FINE = [f'{{"step": {step}, "loss": {4 - step}}}' for step in (1, 2, 3)]
BAD = [
    '{"step": 2, "lo',
    "",
    "[1, 2]",
    "null",
    '{"loss": 2.0}',
    '{"step": 2, "loss": "2.0"}',
    '{"step": 2, "loss": null}',
    '{"step": 2, "loss": NaN}',
    '{"step": 2, "loss": true}',
    "[" * 100_000,
    "\ufffd\0",
]


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(log: Path, lines: list[str], end: str = "\n") -> None:
    log.write_text("\n".join(lines) + end)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("position", [0, 1, 3])
def test_a_record_that_cannot_be_read_is_named(log, bad, position):
    write(log, [*FINE[:position], bad, *FINE[position:]])
    where = re.escape(f"{log}:{position + 1} is no record")
    with pytest.raises(UserError, match=where):
        metrics.read(log)
    with pytest.raises(UserError, match=where):
        metrics.MetricsLog(log, 3)
    assert bad in log.read_text()


def test_a_log_that_is_not_there_is_named(log):
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read: No such file"):
        metrics.read(log)


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"step": 3, "loss": 1}', "{"])
def test_a_last_record_that_is_cut_off(log, cut):
    write(log, [*FINE[:2], cut], end="")
    with pytest.raises(metrics.CutOff, match=r"metrics\.jsonl:3 is cut off"):
        metrics.read(log)
    # Its step is taken again after the checkpoint of step 2, and was not before 3.
    assert metrics.MetricsLog(log, 2).records == [json.loads(x) for x in FINE[:2]]
    write(log, [*FINE[:2], cut], end="")
    with pytest.raises(UserError, match=r"metrics\.jsonl:3 is cut off"):
        metrics.MetricsLog(log, 3)


@pytest.mark.parametrize(("kept", "missing"), [([0, 1], 3), ([0, 2], 2), ([], 3)])
def test_records_that_are_missing_are_named(log, kept, missing):
    write(log, [FINE[i] for i in kept], end="\n" if kept else "")
    with pytest.raises(UserError, match=f"no loss of step {missing}, but the check"):
        metrics.MetricsLog(log, 3)


def test_a_log_may_be_deleted_and_begin_later(log):
    assert metrics.MetricsLog(log, 1).records == []
    write(log, FINE[1:])
    assert len(metrics.MetricsLog(log, 3).records) == 2


def test_an_empty_name_of_an_earlier_run_is_refused(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(examples.pretrain.training, "train")
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read: No such file"):
        examples.pretrain.run(config, beside="")


def test_tensorboard_gets_what_the_log_gets(log):
    records = metrics.MetricsLog(log)
    with records.in_tensorboard(True):
        records.write(step=1, loss=2.5, seconds=1.0)
        records.write(step=1, validation_loss=3.5, seconds=1.0)
    records.write(step=2, loss=1.5, seconds=2.0)
    (file,) = (log.parent / "tensorboard").iterdir()
    assert scalars(file) == [("loss", 1, 2.5), ("validation_loss", 1, 3.5)]


def test_tensorboard_gets_nothing_unless_it_is_wanted(log):
    records = metrics.MetricsLog(log)
    with records.in_tensorboard(False):
        records.write(step=1, loss=2.5)
    assert [path.name for path in log.parent.iterdir()] == ["metrics.jsonl"]


def scalars(file: Path) -> list[tuple[str, int, float]]:
    """Reads a file of events: records between their length and checksums."""
    data, found = file.read_bytes(), []
    while data:
        (size,) = struct.unpack_from("<Q", data)
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        found += [(x.tag, event.step, x.simple_value) for x in event.summary.value]
    return found


def test_last_value_of_a_metric_is_none_without_one():
    assert metrics.last([{"step": 1, "loss": 2.5}], "validation_loss") is None
    assert metrics.last([], "seconds") is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "cannot be read: No such file"),
        (FINE, "has no validation loss"),
        (
            [*FINE, '{"step": 3, "validation_loss": 1.'],
            r"metrics\.jsonl:4 is no record",
        ),
        ([], "has no validation loss"),
    ],
)
def test_an_earlier_run_to_be_shown_is_read_before_training(
    config, tmp_path, monkeypatch, lines, message
):
    monkeypatch.delattr(examples.pretrain.training, "train")
    earlier = tmp_path / "earlier"
    if lines is not None:
        earlier.mkdir()
        (earlier / "metrics.jsonl").write_text("".join(x + "\n" for x in lines))
    with pytest.raises(UserError, match=message):
        examples.pretrain.run(config, beside=str(earlier))
