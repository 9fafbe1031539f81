"""The plan of the study and its page, from made-up losses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.study.rows import Study, difference

from benchmarks.common import store
from benchmarks.common.intervals import Interval
from benchmarks.study import (
    families,
    figures,
    rare,
    report,
    scaling,
    shared,
    stages,
)
from benchmarks.study import run as program
from benchmarks.study import training as run
from benchmarks.study.arms import ARMS
from tests.benchmarks.made_up import BEST, finish_all, record_of, study_of

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # claims lie in .cache


def test_a_search_goes_beyond_its_edges_and_looks_between():
    losses = finish_all(["body", "shared_sweep"])
    best = shared.tuned({"arm": "ember"}, losses)
    assert best.lr == pytest.approx(100 * ARMS["ember"].center)
    rates = list(shared.sweep({"arm": "ember"}, losses))
    assert len(rates) >= 7
    assert min(rates) < best.lr < max(rates)
    assert {0.56, 1.8} <= set(rates)  # neighbors


def test_a_search_for_a_pair_ends_where_all_neighbors_are_worse():
    losses = finish_all(["body", "arms", "width"])
    for case in ({"arm": "adam"}, {"arm": "ember", "width": 48}):
        assert stages.rates(stages.tuned(case, losses)) == BEST
        tried = stages.searched(case, losses)
        neighbors = {(0.18, 0.0056), (0.056, 0.0056), (0.1, 0.01), (0.1, 0.0032)}
        assert neighbors <= set(tried)
        assert min(tried, key=lambda pair: tried[pair]) == BEST


@pytest.mark.parametrize("module", [shared, stages])
def test_seeds_are_run_at_the_best_rates_and_are_not_that_of_the_search(module):
    losses = finish_all(["body", "shared_sweep", "arms"])
    case = {"arm": "adam"}
    runs = module.seeded(case, losses)
    assert {r.seed for r in runs} == set(shared.SEEDS)
    assert 0 not in shared.SEEDS
    best = module.tuned(case, losses)
    assert {(r.lr, r.head_lr) for r in runs} == {(best.lr, best.head_lr)}


def test_the_larger_model_has_the_rates_of_the_main_setting_scaled():
    losses = finish_all(["body", "arms"])
    runs = stages.seeded(stages.LARGE | {"arm": "adam80"}, losses)
    scale = math.sqrt(96 / 256)
    assert stages.rates(runs[0]) == pytest.approx([scale * x for x in BEST])
    assert [r.seed for r in runs] == [1, 2, 3]


def test_rates_that_are_off_are_off_by_their_factors():
    losses = finish_all(["body", "arms"])
    runs = stages.off("adam80", losses)
    assert len(runs) == 12
    assert stages.rates(runs[4.0, 1.0]) == pytest.approx((4 * BEST[0], BEST[1]))


def test_a_stage_asks_for_what_it_depends_on():
    for runs in (stages.missing("batch", {}), shared.missing("shared_batch", {})):
        assert {r.body_lr for r in runs} == set(shared.BODIES["adamw"].rates)


def test_the_stage_for_a_gpu_has_the_sizes_of_its_config():
    losses = finish_all(["body", "arms"])
    one_run = stages.tuned(stages.CASES["scale"][0], losses)
    assert one_run.steps == 512
    scale = math.sqrt(96 / 768)
    assert stages.rates(one_run) == pytest.approx([scale * x for x in BEST])
    functions = run.make_functions(one_run, 50_257)
    state = jax.eval_shape(functions.init, 0)
    n_parameters = sum(x.size for x in jax.tree.leaves(state.params))
    # 124 million, and the head that is not tied here.
    assert n_parameters == pytest.approx(124e6 + 50_257 * 768, rel=0.01)
    tokens = jax.ShapeDtypeStruct((16, 1025), jnp.int32)
    rates = run.rates_of(one_run)
    after, loss = jax.eval_shape(functions.step, state, tokens, rates)
    assert (jax.tree.structure(after), loss.shape) == (jax.tree.structure(state), ())


def test_the_plan_has_all_stages_and_enough_runs():
    losses = finish_all(["body", *stages.STAGES])
    assert len(losses) > 600
    assert not any(list(stages.missing(name, losses)) for name in stages.STAGES)


def test_differences_are_paired_by_seed():
    losses = finish_all(["body", "arms"])
    study = Study({r: record_of(r, x) for r, x in losses.items()})
    ember, adam = study.arm("ember"), study.arm("adam")
    found = difference(ember, adam)
    # Learning rates are rounded, so the best of the two are not equally good.
    assert found == pytest.approx((-0.1, -0.1, -0.1), abs=1e-3)
    assert found.verdict == "better"
    assert difference(adam, ember).verdict == "worse"
    assert Interval(0.0, -0.1, 0.009).verdict == "no worse"
    assert Interval(0.0, -0.02, 0.02).verdict == "undecided"


def test_the_interval_is_that_of_student():
    losses = finish_all(["body", "arms"])
    study = Study({r: record_of(r, x) for r, x in losses.items()})
    one = study.arm("ember")
    other = one._replace(losses={s: x - s for s, x in one.losses.items()})
    found = difference(one, other)  # of 1, 2, 3, 4, 5: mean 3, t = 2.776
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert found == pytest.approx((3, 3 - half, 3 + half))


def test_the_page_is_made_from_any_finished_part(tmp_path):
    path = tmp_path / "runs.jsonl"
    for names in (["body"], ["body", "arms", "batch"]):
        study = study_of(names, path)
        page = report.page(study, {})
        assert f"{len(study.runs)} finished runs" in page
        assert "not finished" in page
    assert "better at 8, 32, 128, 512" in page
    assert "`batch/ember/512/16`" in page


def test_all_planned_comparisons_are_made(tmp_path):
    names = ["body", "shared_sweep", *stages.STAGES]
    study = study_of(names, tmp_path / "runs.jsonl")
    found = families.families(study)
    sizes = {key: (family.n, len(family.finished)) for key, family in found.items()}
    assert sizes == {
        "adam": (12, 12),
        "constant": (12, 12),
        "arms": (17, 17),
        "large": (2, 2),
    }
    page = report.page(study, {})
    assert "holds in 12 of 12: better in 12" in page
    drawn = figures.draw_all(study, tmp_path)
    names = ["plane", "off", "by_setting", "pareto", "rare", "rounding"]
    assert [path.stem for path in drawn] == names


def test_intervals_of_a_family_are_wider(tmp_path):
    study = study_of(["body", "arms"], tmp_path / "runs.jsonl")
    one, other = study.arm("ember"), study.arm("adam")
    other = other._replace(losses={s: x - s for s, x in one.losses.items()})
    alone, of_twelve = difference(one, other), difference(one, other, 12)
    # Student's t with 4 degrees of freedom at 1 - 0.025 and at 1 - 0.025 / 12.
    ratio = 5.885305 / 2.776445
    assert of_twelve.high - 3 == pytest.approx(ratio * (alone.high - 3), rel=1e-3)


def test_frequencies_are_compared_at_the_same_loss(tmp_path):
    study = study_of(["body", "arms", "rare"], tmp_path / "runs.jsonl")
    loss, found = rare.at_equal_loss(study)
    assert loss == max(row.mean for row, _ in found)
    for row, errors in found:  # measured at a nat above and below its own loss
        expected = np.mean([(loss - x) / 2 for x in row.losses.values()])
        np.testing.assert_allclose(errors, expected, atol=1e-6)


def test_a_row_names_its_runs(tmp_path):
    path = tmp_path / "runs.jsonl"
    for one_run, value in finish_all(["body", "shared_sweep"]).items():
        store.append(path, record_of(one_run, value))
    runs = program.runs_of_row("shared_seeds/ember", path)
    assert {r.arm for r in runs} == {"ember"}
    with pytest.raises(SystemExit, match="is not tuned"):
        program.runs_of_row("shared_muon/ember/muon", path)
    with pytest.raises(SystemExit, match="There is no row 'x'"):
        program.runs_of_row("x", path)


def test_rules_of_rates_are_fitted_and_their_costs_known(tmp_path):
    """Losses are made up so that the best pair is the main one, in every setting."""
    study = study_of(["body", *stages.STAGES, "rule"], tmp_path / "runs.jsonl")
    for arm in scaling.ARMS:
        assert scaling.fitted(arm, study.losses)[1:] == scaling.KEPT[1:]
        kept, practice, _ = scaling.costs(study, arm)
        assert scaling.mean(kept) == pytest.approx(0)
        assert scaling.mean(practice) > 0.01
        assert len(kept.costs) == 8
    case = {"arm": "adam80", "width": 192}
    run = scaling.by_rule(scaling.PRACTICE, "width", case, study.losses)
    main = stages.tuned({"arm": "adam80"}, study.losses)
    assert run.lr == pytest.approx(main.lr / 2**0.5, rel=0.03)
    assert run.head_lr == pytest.approx(main.head_lr / 2**0.5, rel=0.03)
