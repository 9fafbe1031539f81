"""How comparisons after pretraining find their learning rates, with made-up runs."""

import math

import pytest

from benchmarks import results, tuning
from benchmarks.tuning import FINETUNE, GRPO, compare, on_file, search

BEST = {"ember": 3e-2, "adam": 1e-3}  # of the tables; that of the body is 1e-2


@pytest.fixture(autouse=True)
def own_results(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.runs.version", lambda _: "0")  # tunix need not be


def execute(settings):
    off = math.log10(settings["learning_rate"] / BEST[settings["arm"]])
    off_body = math.log10(settings["body_learning_rate"] / 1e-2)
    return {"validation_loss": 3 + off**2 + off_body**2 + 0.01 * settings["seed"]}


def test_a_search_goes_on_at_its_edges():
    found = search(lambda rate: abs(math.log10(rate / 1e-5)), float, (1e-3, 3e-3))
    assert list(found) == [3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
    assert min(found, key=lambda rate: found[rate]) == 1e-5


def test_arms_have_one_rate_of_the_body_and_their_own_of_the_tables():
    found = compare(FINETUNE, execute)
    assert found.body_rate == 1e-2
    assert {arm.name: arm.best for arm in found.arms} == BEST
    for arm in found.arms:
        assert [run["seed"] for run in arm.repeated] == list(tuning.SEEDS)
        assert {run["learning_rate"] for run in arm.repeated} == {arm.best}
        assert {run["body_learning_rate"] for run in arm.repeated} == {1e-2}
    assert tuning.SEARCHED not in tuning.SEEDS
    again = compare(FINETUNE, lambda run: pytest.fail(f"{run} is on file"))
    assert again == found == on_file(FINETUNE)


def test_a_reward_is_to_be_high():
    run = {"last_reward": 0.7, "validation_loss": 0.7}
    assert (GRPO.loss(run), FINETUNE.loss(run)) == (-0.7, 0.7)


def test_a_comparison_that_is_not_finished_says_how_to_finish_it():
    with pytest.raises(LookupError, match=r"python -m benchmarks\.grpo"):
        on_file(GRPO)
