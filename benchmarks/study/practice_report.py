"""Tables of the second plan, PLAN_PRACTICE.md, from the runs that are finished."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

from benchmarks.common.tables import markdown, paragraphs
from benchmarks.study import practice, scaling, stages
from benchmarks.study.arms import ARMS
from benchmarks.study.comparisons import HEAD, Row, Study, cells_of, difference, setting
from benchmarks.study.practice import ADAM, ADAM80, EMBER, NANOCHAT
from benchmarks.study.settings import Settings
from benchmarks.study.stages import Case, Unfinished, name_of, rates

RIVALS: tuple[Case, ...] = (
    {"arm": ADAM80},
    {"arm": ADAM},
    NANOCHAT,
    {"arm": "factored_rms"},
)


def tables(study: Study) -> str:
    """Returns the tables of finished cases, and a list of the unfinished stages."""
    shown = [
        setting_table(study) if stage == "setting" else elsewhere(study, stage)
        for stage in practice.CASES
    ]
    return "\n\n".join(filter(None, [*shown, missing(study)]))


def rows(study: Study, stage: str) -> Iterator[tuple[Case, Row]]:
    """Yields the cases of a stage whose runs are all finished."""
    for case in practice.CASES[stage]:
        try:
            runs = practice.seeded(case, study.losses)
            yield case, study.row_of(name_of(f"practice_{stage}", case), runs)
        except Unfinished:
            continue


def setting_table(study: Study) -> str:
    """Returns all optimizers in the setting as in practice, best first."""
    found = list(rows(study, "setting"))
    candidate = next((row for case, row in found if case == {"arm": EMBER}), None)
    if candidate is None:
        return ""
    cells = []
    for case, row in sorted(found, key=lambda pair: pair[1].mean):
        if case in RIVALS:
            compared = difference(candidate, row, len(RIVALS))
        elif "weight_decay" in case:
            compared = difference(candidate, row, 2)
        else:
            compared = None
        shown = (str(compared), compared.verdict) if compared else ("", "")
        cells.append([title(row), *cells_of(row)[1:], *shown, f"`{row.name}`"])
    return markdown([*HEAD, "Ember minus this", "verdict", "name"], cells, left=1)


def title(row: Row) -> str:
    """Names the optimizer, its weight decay and QK-norm."""
    run = row.settings
    words = [row.title]
    if run.weight_decay:
        words.append(f"{'cautious ' * run.cautious}weight decay {run.weight_decay:g}")
    if run.qk_norm:
        words.append("QK-norm")
    return ", ".join(words)


def elsewhere(study: Study, stage: str) -> str:
    """Returns the best pairs of a stage, next to Ember's loss."""
    found = list(rows(study, stage))
    if not found:
        return ""
    embers = {place(row): row for case, row in found if case["arm"] == EMBER}
    cells = []
    for case, row in found:
        ember = embers.get(place(row))
        compared = ""
        if ember is not None and case["arm"] != EMBER:
            compared = str(difference(ember, row, len(embers)))
        cells.append([where(row.settings), *cells_of(row), compared, f"`{row.name}`"])
    return markdown(["setting", *HEAD, "Ember minus this", "name"], cells, left=2)


def rule_costs(study: Study) -> str:
    """Returns the cost of each rule where width or tokens in a step change."""
    rules = {"theory": scaling.THEORY, "root": scaling.ROOT}
    cells = []
    for arm in practice.PAIR:
        with contextlib.suppress(Unfinished):
            rules["fitted"] = practice.fitted(arm, study.losses)
        for case in practice.SCALED:
            if case["arm"] == arm:
                with contextlib.suppress(Unfinished):
                    cells.append(costs_of(study, case, rules))
    head = ["setting", "tables", "best pair", *(f"cost of {name}" for name in rules)]
    return markdown(head, cells, left=2) if cells else "Not measured yet."


def costs_of(study: Study, case: Case, rules: dict[str, scaling.Rule]) -> list[str]:
    """Returns setting, optimizer, best pair, and the cost of the pair of each rule."""
    best = practice.tuned(case, study.losses)
    main = rates(practice.tuned(stages.main(case), study.losses))
    costs = []
    for rule in rules.values():
        lr, head_lr = practice.snapped(rule.scale(main, best))
        run = dataclasses.replace(best, lr=lr, head_lr=head_lr)
        cost = study.losses.get(run, math.nan) - study.losses[best]
        costs.append("" if math.isnan(cost) else f"{cost:.3f}")
    pair = ", ".join(f"{rate:g}" for rate in rates(best))
    return [where(best), ARMS[best.arm].title, pair, *costs]


def place(row: Row) -> Settings:
    """Returns the settings of a row without its optimizer and rates."""
    return dataclasses.replace(
        row.settings, arm=EMBER, lr=0.0, head_lr=None, body_lr=0.0
    )


def where(run: Settings) -> str:
    tokens = run.batch * run.window
    return f"{setting(run)}, {run.steps:,} steps of {tokens:,} tokens"


def missing(study: Study) -> str:
    """Says which stages are not finished."""
    left = {
        stage: len(cases) - sum(1 for _ in rows(study, stage))
        for stage, cases in practice.CASES.items()
    }
    words = [
        f"{stage} ({n} of {len(practice.CASES[stage])})"
        for stage, n in left.items()
        if n
    ]
    return paragraphs(f"Not measured yet: {', '.join(words)}.") if words else ""
