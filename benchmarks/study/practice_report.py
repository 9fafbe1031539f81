"""Tables of the second plan, PLAN_PRACTICE.md, from the runs that are finished."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.common.intervals import Interval
from benchmarks.common.tables import markdown, paragraphs
from benchmarks.study import practice, scaling
from benchmarks.study.arms import ARMS
from benchmarks.study.comparisons import HEAD, Row, Study, cells_of, difference
from benchmarks.study.practice import ADAM, ADAM80, EMBER, NANOCHAT
from benchmarks.study.settings import Settings
from benchmarks.study.stages import Case, Unfinished, name_of, rates
from examples.lm.optimizer import POWERS

MAIN = "width 96, 256 steps of 1,024 tokens"
RIVALS: tuple[Case, ...] = (
    {"arm": ADAM80},
    {"arm": ADAM},
    NANOCHAT,
    {"arm": "factored_rms"},
)

COSTS = {
    "largest cost: other width": practice.CASES["width"],
    "more tokens in a step": practice.EQUAL_STEPS,
    "the same in 16 to 128 steps": practice.EQUAL_TOKENS,
}


def main_setting(study: Study) -> str:
    """Returns the table of the main setting, and a list of the unfinished stages."""
    return "\n\n".join(filter(None, [setting_table(study), missing(study)]))


def other_settings(study: Study) -> str:
    """Returns a table for each other stage that has finished cases."""
    others = [stage for stage in practice.CASES if stage not in ("setting", "body")]
    tables = [elsewhere(study, stage) for stage in others]
    return "\n\n".join(filter(None, [*tables, body_rates(study)]))


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


def body_rates(study: Study) -> str:
    """Returns the losses with lower rates of the body, next to the rule's rate."""
    by_rule = {(c["arm"], c["width"]): row for c, row in rows(study, "width")}
    cells = []
    for case, row in rows(study, "body"):
        rule = by_rule[case["arm"], case["width"]]
        compared = difference(row, rule, len(practice.CASES["body"]))
        loss, name = cells_of(row)[-1], f"`{row.name}`"
        place, rate = where(row.settings), f"{case['body_lr']:g}"
        cells.append([place, row.title, rate, loss, str(compared), name])
    head = ["setting", "tables", "rate of the body", "loss", "minus the rule's", "name"]
    return markdown(head, cells, left=2) if cells else ""


def rule_costs(study: Study) -> str:
    """Returns the cost of each rule where width or tokens in a step change."""
    cells = []
    for arm in practice.PAIR:
        rules = [scaling.THEORY, scaling.ROOT]
        with contextlib.suppress(Unfinished):
            rules.append(practice.fitted(arm, study.losses))
        for case in practice.SCALED:
            with contextlib.suppress(Unfinished):
                if case["arm"] == arm:
                    best = practice.tuned(case, study.losses)
                    costs = [shown(cost(study, best, rule)) for rule in rules]
                    costs += [""] * (3 - len(rules))  # not fitted yet
                    title = ARMS[arm].title
                    cells.append([where(best), title, *pair_of(best), *costs])
    head = ["setting", *HEAD[:-1], "cost of theory", "of root", "of the fitted rule"]
    return markdown(head, cells, left=2) if cells else "Not measured yet."


def advised_rates(study: Study) -> str:
    """Returns the rates by the rule, as formulas in the width, and what they cost."""
    cells = []
    for arm in practice.PAIR:
        with contextlib.suppress(Unfinished):
            best = rates(practice.tuned({"arm": arm}, study.losses))
            body = practice.best_body_rate(study.losses)
            tuned = zip((*best, body), POWERS.values(), strict=True)
            formulas = [formula(*pair) for pair in tuned]
            costs = [largest_cost(study, arm, x) for x in COSTS.values()]
            cells.append([ARMS[arm].title, *formulas, *map(shown, costs)])
    head = ["tables", "embedding", "head", "AdamW on the body"]
    return markdown([*head, *COSTS], cells, left=4)


def largest_cost(study: Study, arm: str, cases: Sequence[Case]) -> float | None:
    """Returns the largest cost of the advised rule for an arm, if all are known."""
    cases = [case for case in cases if case["arm"] == arm]
    try:
        costs = [cost(study, practice.tuned(case, study.losses)) for case in cases]
    except Unfinished:
        return None
    known = [x for x in costs if x is not None]
    return max(known) if len(known) == len(costs) else None


def formula(rate: float, power: float) -> str:
    """Writes a rate that is scaled by a power of the relative width."""
    return f"{rate:g} (96 / w)^{-power:g}" if power else f"{rate:g}"


def advice(study: Study) -> str:
    """Returns Ember's best pair in each situation and what the rule costs there."""
    cells = [
        [where(x.best), *pair_of(x.best), shown(x.cost), str(x.lead or "")]
        for x in situations(study)
    ]
    head = ["situation", "embedding", "head", "cost of the rule", "Ember minus Adam"]
    return markdown(head, cells, left=1) if cells else "Not measured yet."


class Situation(NamedTuple):
    """Ember in one setting."""

    best: Settings  # the run of the search
    cost: float | None  # of the rule's pair against the best pair
    lead: Interval | None  # Ember minus the better Adam


def situations(study: Study) -> list[Situation]:
    """Returns all settings in which Ember's runs are finished."""
    advised = {place(row): row for _, row in rows(study, "advised")}
    found = []
    for stage in practice.CASES:
        finished = list(rows(study, stage))
        for case, ember in finished:
            if case["arm"] != EMBER or case.keys() & {"weight_decay", "lr"}:
                continue
            adams = [
                (row.mean, difference(ember, row, size_of_family(stage, other)))
                for other, row in finished
                if other["arm"] in (ADAM80, ADAM) and place(row) == place(ember)
            ]
            lead = min(adams)[1] if adams else None
            best = practice.tuned(case, study.losses)
            by_advice = advised.get(place(ember))
            price = by_advice.mean - ember.mean if by_advice else cost(study, best)
            found.append(Situation(best, price, lead))
    return found


def pair_of(run: Settings) -> tuple[str, str]:
    """Returns the rates of embedding and head; a tied table is a head."""
    if run.head_lr is None:
        return "", f"{run.lr:g}"
    return f"{run.lr:g}", f"{run.head_lr:g}"


def cost(
    study: Study, best: Settings, rule: scaling.Rule = scaling.ADVISED
) -> float | None:
    """Returns the cost of a rule's pair against the best pair, if it was tried."""
    main = rates(practice.tuned({"arm": best.arm}, study.losses))
    lr, head_lr = practice.snapped(rule.scale(main, best))
    by_rule = {"lr": head_lr} if best.tied else {"lr": lr, "head_lr": head_lr}
    loss = study.losses.get(dataclasses.replace(best, **by_rule))
    return None if loss is None else loss - study.losses[best]


def shown(nats: float | None) -> str:
    return "" if nats is None else f"{nats:.3f}"


def place(row: Row) -> Settings:
    """Returns the settings of a row without its optimizer and rates."""
    return dataclasses.replace(
        row.settings, arm=EMBER, lr=0.0, head_lr=None, body_lr=0.0
    )


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
