"""How comparisons after pretraining find their learning rates, with made-up runs."""

import math

import pytest

from benchmarks.common import provenance
from benchmarks.common.search import HALVES, best_rate, search
from benchmarks.post_training import comparison
from benchmarks.post_training.comparison import FINETUNE, GRPO, finish, on_file

BEST = {"ember": 3e-2, "adam": 1e-3}  # of the tables; that of the body is 1e-2


@pytest.fixture(autouse=True)
def own_results(monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "RESULTS", tmp_path)
    monkeypatch.setattr(provenance, "version", lambda _: "0")  # tunix need not be there


def execute(settings):
    off = math.log10(settings["learning_rate"] / BEST[settings["arm"]])
    off_body = math.log10(settings["body_learning_rate"] / 1e-2)
    return {"validation_loss": 3 + off**2 + off_body**2 + 0.01 * settings["seed"]}


def test_a_search_goes_on_at_its_edges():
    def losses_at(rates):
        return [abs(math.log10(rate / 1e-5)) for rate in rates]

    found = search(losses_at, (1e-3, 3e-3), HALVES)
    assert list(found) == [3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
    assert best_rate(found) == 1e-5


def test_arms_have_one_rate_of_the_body_and_their_own_of_the_tables():
    found = finish(FINETUNE, execute)
    assert found.body_rate == 1e-2
    assert {arm.name: arm.best for arm in found.arms} == BEST
    for arm in found.arms:
        repeated = [run["settings"] for run in arm.repeated]
        assert [run["seed"] for run in repeated] == list(comparison.SEEDS)
        assert {run["learning_rate"] for run in repeated} == {arm.best}
        assert {run["body_learning_rate"] for run in repeated} == {1e-2}
    assert comparison.SEARCHED not in comparison.SEEDS
    again = finish(FINETUNE, lambda run: pytest.fail(f"{run} is on file"))
    assert again == found == on_file(FINETUNE)


def test_a_reward_is_to_be_high():
    run = {"last_reward": 0.7, "validation_loss": 0.7}
    assert (GRPO.loss(run), FINETUNE.loss(run)) == (-0.7, 0.7)


def test_a_comparison_that_is_not_finished_says_how_to_finish_it():
    with pytest.raises(
        LookupError, match=r"python -m benchmarks\.post_training\.run grpo"
    ):
        on_file(GRPO)
