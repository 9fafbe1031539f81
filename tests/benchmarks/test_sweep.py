import itertools
import json

import pytest

from benchmarks import sweep
from configs.pretrain_small import get_config
from examples.lm import data


def test_ember_and_adam_get_equally_many_runs():
    runs = list(itertools.chain(*(stage() for stage in sweep.STAGES.values())))
    names = [run["tables.optimizer"] for run in runs]
    assert names.count("ember") == names.count("adam")


def test_every_run_is_a_config():
    for stage in sweep.STAGES.values():
        for run in stage():
            config = get_config()
            config.update_from_flattened_dict(run)


@pytest.mark.usefixtures("standard_promotion")
def test_a_finished_run_is_reported(config, monkeypatch, tmp_path):
    monkeypatch.setattr(
        sweep, "get_config", lambda: config.copy_and_resolve_references()
    )
    monkeypatch.setattr(sweep, "RESULTS", tmp_path / "sweep.jsonl")
    run = {"tables.optimizer": "ember", "tables.learning_rate": 0.01}
    run |= {"tables.b2": 0.9, "body.learning_rate": 0.002, "seed": sweep.SEEDS[0]}
    result = sweep.execute(run, data.load(**config.data))
    sweep.RESULTS.write_text(json.dumps(result) + "\n")
    assert sweep.finished() == [result]
    loss = f"{result['validation_loss']:.3f}"
    row = f"| ember 0.01, b2 0.9 | adamw 0.002 | 1 | {loss} | {loss} |"
    assert row in sweep.report()
