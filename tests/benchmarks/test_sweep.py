"""The sweep behind configs/pretrain_small.py: which runs it has, and its list."""

import itertools

import pytest

from benchmarks.common import store
from benchmarks.sweep import plan, report, run
from configs.pretrain_small import get_config
from examples.lm import data


def test_ember_and_adam_get_equally_many_runs():
    runs = list(itertools.chain(*(stage() for stage in plan.STAGES.values())))
    names = [settings["tables.optimizer"] for settings in runs]
    assert names.count("ember") == names.count("adam")


def test_every_run_is_a_config():
    for stage in plan.STAGES.values():
        for settings in stage():
            config = get_config()
            config.update_from_flattened_dict(settings)


def test_all_runs_are_on_file():
    done = [finished["settings"] for finished in store.read(report.RESULTS)]
    planned = itertools.chain(*(stage() for stage in plan.STAGES.values()))
    assert [settings for settings in planned if settings not in done] == []


@pytest.fixture
def config(tmp_path):
    """The configuration of `make pretrain`, tiny."""
    for i in range(20):
        words = [f"word{i} counts {i * n} and {n} more" for n in range(20)]
        (tmp_path / f"{i:02}.txt").write_text("\n".join(words))
    config = get_config()
    config.update(steps=6, batch_size=2, sequence_length=16)
    config.update(eval_every=3, eval_batches=2, checkpoint_every=2)
    config.data.update(path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    config.data.vocab_size = 300
    config.model.update(width=16, layers=1, heads=2, mlp_width=32, vocab_multiple=1)
    config.mesh.fsdp = 1  # of the eight devices
    return config


@pytest.mark.usefixtures("standard_promotion")
def test_a_finished_run_is_reported(config, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "get_config", lambda: config.copy_and_resolve_references())
    settings = {"tables.optimizer": "ember", "tables.learning_rate": 0.01}
    settings |= {"tables.b2": 0.9, "body.learning_rate": 0.002}
    settings |= {"seed": plan.SEEDS[0]}
    tokens = data.load(**config.data)
    path = tmp_path / "results.jsonl"
    result = store.run_once(path, settings, lambda: run.execute(settings, tokens))
    assert store.read(path) == [result]
    loss = f"{result['validation_loss']:.3f}"
    row = f"| ember 0.01, b2 0.9 | adamw 0.002 | 1 | {loss} | {loss} |"
    assert row in report.everything([result])
