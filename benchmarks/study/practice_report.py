"""Tables of the second plan, PLAN_PRACTICE.md, from the runs that are finished."""

import dataclasses
from collections.abc import Iterator, Sequence

from benchmarks.common.intervals import Interval
from benchmarks.common.tables import markdown, paragraphs
from benchmarks.study import practice
from benchmarks.study.comparisons import HEAD, Row, Study, cells_of, difference
from benchmarks.study.practice import ADAM, ADAM80, EMBER, NANOCHAT
from benchmarks.study.settings import Settings
from benchmarks.study.stages import Case, Unfinished, name_of

MAIN = "width 96, 256 steps of 1,024 tokens"
RIVALS: tuple[Case, ...] = (
    {"arm": ADAM80},
    {"arm": ADAM},
    NANOCHAT,
    {"arm": "factored_rms"},
)


def main_setting(study: Study) -> str:
    """Returns the table of the main setting, and a list of the unfinished stages."""
    return "\n\n".join(filter(None, [setting_table(study), missing(study)]))


def other_settings(study: Study) -> str:
    """Returns a table for each other stage that has finished cases."""
    others = [stage for stage in practice.CASES if stage not in ("setting", "body")]
    return "\n\n".join(filter(None, [elsewhere(study, stage) for stage in others]))


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
        verdict = "", ""
        if case in RIVALS or "weight_decay" in case:
            compared = difference(candidate, row, size_of_family("setting", case))
            verdict = str(compared), compared.verdict
        cells.append([title(row), *cells_of(row)[1:], *verdict, f"`{row.name}`"])
    return markdown([*HEAD, "Ember minus this", "verdict", "name"], cells, left=1)


def size_of_family(stage: str, case: Case) -> int:
    """Returns the number of comparisons in the family of a rival, by the plan."""
    if stage == "length" and case["arm"] not in (ADAM, ADAM80):
        return 2  # decays
    if stage == "setting":
        return 2 if "weight_decay" in case else len(RIVALS)
    places = sum(case["arm"] == EMBER for case in practice.CASES[stage])
    return places + (stage == "width")  # and width 96


def rivals(study: Study) -> dict[str, Interval]:
    """Returns Ember minus each rival in the main setting, by the rival's title."""
    by_name = {row.name: row for _, row in rows(study, "setting")}
    names = [name_of("practice_setting", case) for case in ({"arm": EMBER}, *RIVALS)]
    candidate, *others = (by_name.get(name) for name in names)
    return {
        row.title: difference(candidate, row, len(RIVALS))
        for row in others
        if row and candidate
    }


def claim(study: Study) -> tuple[str, str]:
    """Returns finding and verdict against the rivals of the main setting."""
    found = rivals(study)
    listed = [f"minus {name}: {x}" for name, x in found.items()]
    verdicts = [f"{x.verdict} against {name}" for name, x in found.items()]
    return "; ".join(listed) or "not measured yet", "; ".join(verdicts)


def claim_of_length(
    study: Study, arms: Sequence[str] = (ADAM, ADAM80)
) -> tuple[str, str]:
    """Returns finding and verdict against the best of some arms in longer runs."""
    found = {case["arm"]: {} for case in practice.CASES["length"]}
    for case, row in rows(study, "length"):
        found[case["arm"]][row.settings.steps] = row
    findings, verdicts = [], {}
    size = size_of_family("length", {"arm": arms[0]})
    for steps, ember in found[EMBER].items():
        rivals = [found[arm][steps] for arm in arms if steps in found[arm]]
        if rivals:
            rival = min(rivals, key=lambda row: row.mean)
            compared = difference(ember, rival, size)
            findings.append(f"{steps:,} steps, minus {rival.title}: {compared}")
            verdicts.setdefault(compared.verdict, []).append(f"{steps:,}")
    words = [f"{verdict} at {', '.join(at)}" for verdict, at in verdicts.items()]
    return "; ".join(findings) or "not measured yet", "; ".join(words)


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
            compared = str(difference(ember, row, size_of_family(stage, case)))
        cells.append([where(row.settings), *cells_of(row), compared, f"`{row.name}`"])
    return markdown(["setting", *HEAD, "Ember minus this", "name"], cells, left=2)


def place(row: Row) -> Settings:
    """Returns the settings of a row without its optimizer and rates."""
    return dataclasses.replace(row.settings, arm=EMBER, lr=0.0, head_lr=None)


def where(run: Settings) -> str:
    """Describes how a run differs from the main setting."""
    tokens = run.batch * run.window
    words = {
        "QK-norm": run.qk_norm,
        "tied tables": run.tied,
        f"width {run.width}": run.width != Settings.width,
        f"vocabulary {run.vocab or 0:,}": run.vocab,
        f"{tokens:,} tokens a step": run.batch != Settings.batch,
        f"{run.steps:,} steps": run.steps != 256,
    }
    return ", ".join(word for word, is_true in words.items() if is_true) or MAIN


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
