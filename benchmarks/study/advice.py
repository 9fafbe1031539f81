"""The rules of docs/choosing.md for the learning rates, and what they cost."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.common.intervals import Interval
from benchmarks.common.tables import markdown
from benchmarks.study import practice, scaling
from benchmarks.study.arms import ARMS
from benchmarks.study.comparisons import HEAD, Study, cells_of, difference
from benchmarks.study.practice import ADAM, ADAM80, EMBER
from benchmarks.study.practice_report import place, rows, size_of_family, where
from benchmarks.study.settings import Settings
from benchmarks.study.stages import Case, Unfinished, rates, tried
from examples.lm.optimizer import POWERS

COSTS = {
    "largest cost: other width": practice.CASES["width"],
    "more tokens in a step": practice.EQUAL_STEPS,
    "the same in 16 to 128 steps": practice.EQUAL_TOKENS,
}


def by_rule(study: Study) -> str:
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
    factor = f" (96 / w)^{-power:g}".removesuffix("^1") if power else ""
    return f"{rate:g}{factor}"


def rule_costs(study: Study) -> str:
    """Returns the cost of each rule where width, tokens or vocabulary change."""
    cells = []
    for arm in practice.PAIR:
        rules = [scaling.THEORY, scaling.ROOT]
        with contextlib.suppress(Unfinished):
            rules.append(practice.fitted(arm, study.losses))
        for case in practice.SCALED + practice.CASES["vocabulary"]:
            with contextlib.suppress(Unfinished):
                if case["arm"] == arm:
                    best = practice.tuned(case, study.losses)
                    costs = [shown(cost(study, best, rule)) for rule in rules]
                    costs += [""] * (3 - len(rules))  # not fitted yet
                    title = ARMS[arm].title
                    cells.append([where(best), title, *pair_of(best), *costs])
    head = ["setting", *HEAD[:-1], "cost of theory", "of root", "of the fitted rule"]
    return markdown(head, cells, left=2) if cells else "Not measured yet."


def body_rates(study: Study) -> str:
    """Returns the losses at lower rates of the body, next to the root rule's rate."""
    by_root = {(case["arm"], case["width"]): row for case, row in rows(study, "width")}
    lower = list(rows(study, "body"))
    embers = {place(row): row for case, row in lower if case["arm"] == EMBER}
    cells = []
    for case, row in lower:
        # Half and a quarter of the rate are a family of two at each width.
        change = difference(row, by_root[case["arm"], case["width"]], 2)
        lead = "" if case["arm"] == EMBER else str(difference(embers[place(row)], row))
        *pair, loss = cells_of(row)
        found = [where(row.settings), *pair, f"{row.settings.body_lr:g}", loss]
        cells.append([*found, str(change), lead, f"`{row.name}`"])
    head = ["setting", *HEAD[:-1], "of the body", HEAD[-1], "minus the root rule's"]
    return markdown([*head, "Ember minus this", "name"], cells, left=2)


def wide_search(study: Study) -> str:
    """Returns the losses of the search with the rule's rate of the body."""
    (case,) = (case for case in practice.CASES["body"] if "lr" not in case)
    found = tried(practice.untuned(case, study.losses), study.losses)
    cells = [
        [f"{embed:g}", f"{head:g}", f"{found[embed, head]:.3f}"]
        for embed, head in sorted(found, key=lambda pair: found[pair])
    ]
    return markdown(["rate of the embedding", "of the head", "loss"], cells, left=0)


def by_situation(study: Study) -> str:
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
            if case["arm"] != EMBER or case.keys() & {"weight_decay", "lr", "body_lr"}:
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
