"""The study of a model as in practice."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.common import text
from benchmarks.study import (
    advice,
    long_runs,
    practice,
    practice_report,
    rare_tokens,
    rules,
    scaling,
    settings,
)
from benchmarks.study import training as run
from benchmarks.study.comparisons import Study
from benchmarks.study.report import RESULTS
from benchmarks.study.run import PRACTICE
from configs import pretrain_small
from examples.lm.optimizer import POWERS
from tests.benchmarks.fakes import finish, study_of, tiny

VOCAB = 64

pytestmark = pytest.mark.usefixtures("standard_promotion", "cheap_compilation")


@pytest.fixture(scope="module")
def losses():
    return finish(PRACTICE)


def test_a_run_tracks_tables_steps_and_rare_tokens(monkeypatch):
    monkeypatch.setattr(run, "VALIDATION_TOKENS", 256)
    rng = np.random.default_rng(0)
    tokens = text.Tokens(*(rng.integers(0, VOCAB, n) for n in (4000, 2000)))
    one_run = tiny(practice=True, qk_norm=True, track=True, lr=0.0, tokens=2048)
    result = run.execute(one_run, tokens, VOCAB)
    # A head of zeros that does not move predicts nothing.
    assert result["validation_loss"] == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert len(result["tables"]) == run.TRACKED
    _, tables = result["tables"][0]
    assert tables["lm_head"] == [0, 0]
    assert tables["embed"][0] == pytest.approx(1, rel=0.1)
    losses, sizes = zip(*result["held_out_by_class"], strict=True)
    found = [x for x in losses if x is not None]
    np.testing.assert_allclose(found, math.log(VOCAB), rtol=1e-4)
    assert 1900 < sum(sizes) < 2000  # of 2,000 tokens, without the incomplete batch


def test_a_run_for_an_accelerator(monkeypatch):
    monkeypatch.setattr(run, "VALIDATION_TOKENS", 256)
    rng = np.random.default_rng(0)
    tokens = text.Tokens(*(rng.integers(0, VOCAB, n) for n in (4000, 2000)))
    one_run = tiny(practice=True, accelerated=True, width=64, layers=2, lr=0.0)
    result = run.execute(one_run, tokens, VOCAB)
    assert result["validation_loss"] == pytest.approx(math.log(VOCAB), rel=0.01)


def test_rates_at_scale_follow_the_rule(losses):
    ember, *adams, half, twice = practice.at_scale(losses)
    assert [x.arm for x in adams] == ["adam80", "adam"]
    factor = (768 / 96) ** scaling.ADVISED.width[1]
    assert ember.head_lr == pytest.approx(0.0056 * factor, rel=0.01)
    assert (half.lr, twice.lr) == pytest.approx((ember.lr / 2, 2 * ember.lr))


def test_cautious_decay_never_opposes_the_update():
    updates = {"t": jnp.array([1.0, -1.0, 1.0, -1.0, 0.0])}
    params = {"t": jnp.array([2.0, 2.0, -2.0, -2.0, 2.0])}
    decayed, _ = rules.add_cautious_decay(0.5).update(
        updates, optax.EmptyState(), params
    )
    np.testing.assert_array_equal(decayed["t"], [2, -1, 1, -2, 0])


def test_a_rule_is_fitted_and_its_cost_is_known(losses):
    """The invented best pair is the same in every setting."""
    assert practice.fitted("adam80", losses) == ((0, 0), (0, 0))
    lines = advice.rule_costs(study_of(losses)).splitlines()[2:]
    assert len(lines) == len(practice.SCALED) + len(practice.PAIR) * 2
    for line in lines:
        *_, theory, root, fitted = (x.strip() for x in line.strip("|").split("|"))
        assert float(fitted) == 0
        assert float(root) > 0.01
        assert float(theory) > 0.01 or "width" not in line


def test_rates_are_formulas_of_the_width(losses):
    *_, last = advice.by_rule(study_of(losses)).splitlines()
    *formulas, cost, _, _ = (x.strip() for x in last.strip("|").split("|"))
    assert formulas == [
        "Adam (0.8, 0.95)",
        "0.1",
        "0.0056 (96 / w)",
        "0.001 (96 / w)",
    ]
    # The invented best pair is the same at all widths. At 768 the rule divides the
    # head's rate by 8, on the grid of quarter decades by 10.
    assert float(cost) == 1


def test_advice_compares_with_the_better_adam(losses):
    lines = advice.by_situation(study_of(losses)).splitlines()[2:]
    assert [x for x in lines if "16,384 tokens a step" in x]
    _, _, best, *_ = advice.wide_search(study_of(losses)).splitlines()
    assert best.startswith("| 0.1 | 0.0056 | 3.9")
    for line in lines:
        assert "-0.100" in line  # of the invented losses
    assert "| 0.000 |" in lines[0]


def test_default_rates_are_those_of_the_results():
    found = settings.losses_of(settings.read(RESULTS))
    config = pretrain_small.get_config()
    for name, arm in {"ember": "ember_adafactor", "adam": "adam80"}.items():
        default = config.tables.defaults[name]
        best = practice.tuned({"arm": arm}, found)
        assert (default.embed, default.head) == (best.lr, best.head_lr)
    assert config.body.defaults.adamw == practice.best_body_rate(found)


def test_the_advised_rule_costs_little():
    study = Study(settings.read(RESULTS))
    assert practice.fitted_body(study.losses) == POWERS["body"]
    at_least_32_steps = practice.EQUAL_TOKENS[:-2]  # without 16 steps
    for cases in practice.CASES["width"], practice.EQUAL_STEPS, at_least_32_steps:
        assert advice.largest_cost(study, practice.EMBER, cases) < 0.03


def test_powers_are_fitted_to_quarters():
    sizes = 1.0, 2.0, 8.0
    pairs = [(0.5 * size**-0.3, 0.03 * size**-0.9) for size in sizes]
    assert scaling.fit(sizes, pairs) == (-0.25, -1.0)
    run = tiny(width=384, batch=64, window=64)
    rule = scaling.Rule((0.0, -1.0), (0.5, 0.25))
    assert rule.scale((1.0, 1.0), run) == pytest.approx((2, 4**-1 * 4**0.25))


def shown(losses):
    study = study_of(losses)
    tables = practice_report.main_setting, practice_report.other_settings
    return "\n\n".join(table(study) for table in (*tables, advice.body_rates))


def test_tables_show_what_is_finished_and_name_the_rest(losses):
    text = shown(losses)
    assert "Not measured" not in text
    for stage, cases in practice.CASES.items():
        assert text.count(f"`practice_{stage}/") == len(cases)
    widest = {run: x for run, x in losses.items() if run.width == 768}
    text = shown(dict(losses.items() - widest.items()))
    assert "width (2 of 6)" in text
    empty = study_of({})
    assert advice.rule_costs(empty) == "Not measured yet."
    assert advice.by_situation(empty) == "Not measured yet."
    assert shown({}).startswith("Not measured yet: setting")


def test_large_vocabularies_show_rare_tokens(losses):
    *_, last = rare_tokens.by_class(study_of(losses)).splitlines()
    vocab, title, *empty, a, b, c, d, e = (x.strip() for x in last[1:-1].split("|"))
    assert (vocab, title) == ("50,304", "Adam (0.9, 0.999)")
    run = practice.seeded(practice.CASES["vocabulary"][-1], losses)
    mean = sum(losses[x] for x in run) / len(run)
    assert empty == ["", ""]  # no token, and too few
    assert [float(x) for x in (a, b, c, d, e)] == pytest.approx([mean] * 5, abs=1e-3)


def test_long_runs_show_their_tables(losses):
    axes = long_runs.long_runs(study_of(losses)).axes
    assert [len(axis.lines) for axis in axes] == [4, 4, 4, 4]


def test_the_longest_runs_have_the_pairs_of_a_quarter(losses):
    for arm in ("adam80", practice.UNCAPPED):
        case = {"arm": arm, "text": "both", "track": True}
        longest = practice.tuned(case | {"tokens": 16_384 * 1024}, losses)
        shorter = {"arm": practice.EMBER if arm == practice.UNCAPPED else arm}
        quarter = practice.tuned(case | shorter | {"tokens": 4096 * 1024}, losses)
        assert (longest.lr, longest.head_lr) == (quarter.lr, quarter.head_lr)


def test_long_runs_are_claimed_against_the_better_adam(losses):
    finding, verdict = practice_report.claim_of_length(study_of(losses))
    assert finding.startswith("1,024 steps, minus Adam (0.9, 0.999): -0.100 [")
    assert verdict == "better at 1,024, 4,096, 16,384"
    _, verdict = practice_report.claim_of_length(study_of(losses), ["ember"])
    assert verdict == "non-inferior at 1,024, 4,096, 16,384"
    assert practice_report.claim_of_length(study_of({})) == ("not measured yet", "")
