"""The plan of the study and its tables, from invented losses."""

import functools
import math

import numpy as np
import pytest

from benchmarks.common import store
from benchmarks.common.intervals import Interval, interval
from benchmarks.study import comparisons, report, stages
from benchmarks.study.run import STAGES, runs_of_row
from benchmarks.study.stages import Unfinished
from tests.benchmarks.fakes import BEST, finish, record_of, study_of

pytestmark = pytest.mark.usefixtures("standard_promotion")


@functools.cache
def losses():
    return finish()


def test_a_search_ends_where_all_neighbors_are_worse():
    for case in ({"arm": "adam"}, {"arm": "ember", "width": 48}):
        assert stages.rates(stages.tuned(case, losses())) == BEST
        tried = stages.searched(case, losses())
        assert {(0.18, 0.0056), (0.056, 0.0056), (0.1, 0.01), (0.1, 0.0032)} <= {*tried}
        assert min(tried, key=lambda pair: tried[pair]) == BEST
    assert stages.tuned({"arm": "adam", "tied": True}, losses()).lr == BEST[1]


def test_seeds_run_at_the_best_rates_and_do_not_include_that_of_the_search():
    runs = stages.seeded({"arm": "adam"}, losses())
    assert [run.seed for run in runs] == [1, 2, 3, 4, 5]
    assert {stages.rates(run) for run in runs} == {BEST}
    runs = stages.seeded(stages.LARGE | {"arm": "adam80"}, losses())
    assert [run.seed for run in runs] == [1, 2, 3]
    scale = math.sqrt(96 / 256)
    assert stages.rates(runs[0]) == pytest.approx([scale * x for x in BEST])


def test_a_stage_first_asks_for_the_runs_that_it_depends_on():
    runs = [*stages.missing(stages.jobs("batch", {}), {})]
    assert {run.body_lr for run in runs} == set(stages.BODY_RATES["adamw"])


def test_mistuned_rates():
    runs = stages.mistuned("adam80", losses())
    assert len(runs) == 12
    assert stages.rates(runs[4.0, 1.0]) == pytest.approx((4 * BEST[0], BEST[1]))


def test_intervals_are_those_of_student_and_wider_in_a_family():
    # Of 1, 2, 3, 4, 5: mean 3; t = 2.776, and 5.885 at 1 - 0.025 / 12.
    for n, t in ((1, 2.776445), (12, 5.885305)):
        half = t * math.sqrt(2.5 / 5)
        assert interval([1, 2, 3, 4, 5], n) == pytest.approx((3, 3 - half, 3 + half))
    assert Interval(0.0, -0.1, 0.009).verdict == "non-inferior"
    assert Interval(0.0, -0.02, 0.02).verdict == "undecided"
    assert Interval(0.1, 0.01, 0.2).verdict == "worse"


def test_differences_are_paired_by_seed():
    study = study_of(losses())
    found = comparisons.difference(study.arm("ember"), study.arm("adam"))
    assert found == pytest.approx((-0.1, -0.1, -0.1), abs=1e-3)
    assert found.verdict == "better"


def test_all_planned_comparisons_are_made():
    found = comparisons.planned(study_of(losses()))
    sizes = {name: len(family) for name, family in found.items()}
    assert sizes == {"adam": 12, "constant": 12, "arms": 17, "large": 2}


def test_the_report_is_made_from_a_finished_study(tmp_path):
    path = tmp_path / "runs.jsonl"
    for run, loss in finish(("body", "arms")).items():
        store.append(path, record_of(run, loss))
    with pytest.raises(Unfinished):
        report.parts(path)
    path.unlink()
    for run, loss in losses().items():
        store.append(path, record_of(run, loss))
    parts = report.parts(path)
    assert "holds in 12 of 12: better in 12" in parts["study.claims"]
    assert "`batch/ember/512/16`" in parts["study.elsewhere"]


def test_frequencies_are_compared_at_the_same_loss():
    study = study_of(losses())
    rows = study.rows("rare")
    loss = max(row.mean for row in rows)
    lines = report.frequencies(study).splitlines()[-len(rows) :]
    for row, line in zip(rows, lines, strict=True):
        # Measured one nat above and below the final loss.
        expected = np.mean([(loss - x) / 2 for x in row.losses.values()])
        assert line.endswith(f"{expected:+.2f} |")


def test_a_row_names_its_runs():
    assert {run.arm for run in runs_of_row("arms/ember", losses())} == {"ember"}
    with pytest.raises(SystemExit, match="is not tuned"):
        runs_of_row("muon/ember/muon", finish(STAGES[:2]))
    with pytest.raises(SystemExit, match="There is no row 'x'"):
        runs_of_row("x", losses())
