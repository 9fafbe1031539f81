"""How comparisons after pretraining find their learning rates, with made-up runs."""

import math

import pytest

from benchmarks.common import provenance
from benchmarks.common.search import HALVES, best_rate, search
from benchmarks.post_training import comparison
from benchmarks.post_training.comparison import (
    FINETUNE,
    GRPO,
    advantage,
    finish,
    on_file,
)

# Of embedding and head; that of the body is 1e-2.
BEST = {"ember": (3e-2, 1e-2), "adam": (1e-2, 3e-3)}


@pytest.fixture(autouse=True)
def own_results(monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "RESULTS", tmp_path)
    monkeypatch.setattr(provenance, "version", lambda _: "0")  # tunix need not be there


def execute(settings):
    rates = settings["embed_learning_rate"], settings["head_learning_rate"]
    offs = [
        math.log10(rate / best)
        for rate, best in zip(
            (*rates, settings["body_learning_rate"]),
            (*BEST[settings["arm"]], 1e-2),
            strict=True,
        )
    ]
    loss = 3 + sum(off**2 for off in offs) + 0.01 * settings["seed"]
    return {"validation_loss": loss + 0.1 * (settings["arm"] == "adam")}


def test_a_search_goes_on_at_its_edges():
    def losses_at(rates):
        return [abs(math.log10(rate / 1e-5)) for rate in rates]

    found = search(losses_at, (1e-3, 3e-3), HALVES)
    assert list(found) == [3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
    assert best_rate(found) == 1e-5


def test_arms_have_one_rate_of_the_body_and_their_own_of_both_tables():
    finish(FINETUNE, execute)
    (found,) = on_file(FINETUNE)
    assert found.body_rate == 1e-2
    assert {name: arm.best for name, arm in found.arms.items()} == BEST
    for arm in found.arms.values():
        repeated = [run["settings"] for run in arm.repeated]
        assert [run["seed"] for run in repeated] == list(comparison.SEEDS)
        pairs = {(r["embed_learning_rate"], r["head_learning_rate"]) for r in repeated}
        assert pairs == {arm.best}
        assert {run["body_learning_rate"] for run in repeated} == {1e-2}
    assert comparison.SEARCHED not in comparison.SEEDS
    for run in found.constant:
        assert run["settings"]["b2"] == 0.999
        assert run["settings"]["embed_learning_rate"] == BEST["ember"][0]
    finish(FINETUNE, lambda run: pytest.fail(f"{run} is on file"))
    (gap,) = advantage(FINETUNE, [found])
    assert gap.mean == pytest.approx(-0.1)
    assert gap.verdict == "better"


def test_a_reward_is_to_be_high():
    run = {"last_reward": 0.7, "validation_loss": 0.7}
    assert (GRPO.loss(run), FINETUNE.loss(run)) == (-0.7, 0.7)


def test_a_comparison_that_is_not_finished_says_how_to_finish_it():
    with pytest.raises(
        LookupError, match=r"python -m benchmarks\.post_training\.run grpo"
    ):
        on_file(GRPO)
