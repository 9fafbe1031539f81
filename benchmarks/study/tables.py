"""The tables of docs/evidence.md and docs/choosing.md."""

import math

from benchmarks.common.tables import markdown
from benchmarks.study import rare, rates, rounding, scaling, stages
from benchmarks.study.families import ADAMS, CANDIDATE, ELSEWHERE, Family
from benchmarks.study.rows import Row, Study, difference, setting


def arms(study: Study) -> str:
    """Returns the table of all optimizers in the main setting, best first."""
    rows = sorted(study.rows("arms") + study.rows("mixed"), key=lambda row: row.mean)
    candidate = study.arm(CANDIDATE)
    return markdown(
        [*HEAD, "minus Ember, Adafactor decay", "state, bytes", "name"],
        [
            [
                row.title,
                *_cells(row),
                minus(row, candidate),
                f"{row.state_bytes:,}",
                f"`{row.name}`",
            ]
            for row in rows
        ],
        left=1,
    )


def summary(study: Study) -> str:
    """Returns the table of README.md: the optimizers that people use."""
    rows = sorted(study.rows("arms"), key=lambda row: row.mean)
    candidate = study.arm(CANDIDATE)
    cells = [
        [row.title, *_cells(row), minus(row, candidate), f"{row.state_bytes:,}"]
        for row in rows
    ]
    head = [*HEAD, "minus Ember, Adafactor decay", "state, bytes"]
    return markdown(head, cells, left=1)


def pretrain(study: Study) -> str:
    """Returns the table of what `make pretrain` runs, with more seeds."""
    rows = [row for row in map(study.arm, (CANDIDATE, ADAMS[0])) if row]
    cells = [[row.title, *_cells(row), f"{row.state_bytes:,}"] for row in rows]
    return markdown([*HEAD, "state of the tables, bytes"], cells, left=1)


def elsewhere(study: Study) -> str:
    """Returns the table of the other settings."""
    rows = [row for stage in ELSEWHERE for row in study.rows(stage)]
    return markdown(
        ["setting", *HEAD, "name"],
        [[setting(r.settings), r.title, *_cells(r), f"`{r.name}`"] for r in rows],
        left=2,
    )


def one_stage(study: Study, stage: str) -> str:
    rows = study.rows(stage)
    cells = [[row.title, *_cells(row), f"`{row.name}`"] for row in rows]
    return markdown([*HEAD, "name"], cells, left=1) if rows else NOT_FINISHED


def rounded(study: Study) -> str:
    """Returns the table of tables in bfloat16."""
    rows = [
        [
            x.setting,
            x.tables,
            *_cells(x.row),
            str(x.cost) if x.cost.mean else "",
            f"{x.row.bytes_a_parameter:.2f}",
        ]
        for of_length in rounding.found(study)
        for x in of_length
    ]
    head = ["setting", "tables", *HEAD[1:], "minus Ember, float32"]
    return markdown([*head, "bytes a parameter"], rows, left=2)


def family(found: Family) -> str:
    """Returns the table of a family of comparisons."""
    rows = [
        [
            setting(c.candidate.settings),
            c.rival.title,
            str(c.difference),
            c.difference.verdict,
        ]
        for c in found.finished
    ]
    waiting = found.n - len(found.finished)
    note = f"{waiting} of {found.n} are not finished." if waiting else ""
    head = ["setting", "rival", "Ember, Adafactor decay, minus rival", "verdict"]
    table = markdown(head, rows) if rows else ""
    return "\n\n".join(part for part in (table, note) if part)


def kept_pairs(study: Study) -> str:
    """Returns the table of the best pairs by setting, and what the main one costs."""
    by_arm = {arm: rates.kept_pairs(study, arm) for arm in (CANDIDATE, *ADAMS)}
    names = list(dict.fromkeys(kept.setting for x in by_arm.values() for kept in x))
    rows = []
    for name in names:
        row = [name]
        for found in by_arm.values():
            kept = next((kept for kept in found if kept.setting == name), None)
            row += (
                [f"{kept.best[0]:g}, {kept.best[1]:g}", f"{kept.cost:.3f}"]
                if kept
                else ["", ""]
            )
        rows.append(row)
    titles = ["Ember, Adafactor decay", "Adam (0.8, 0.95)", "Adam (0.9, 0.999)"]
    head = [
        "setting",
        *(x for title in titles for x in (title, "cost of the main pair")),
    ]
    return markdown(head, rows, left=1)


def costs_off(study: Study) -> str:
    """Returns the table of what a rate off by a factor costs."""
    costs = {arm: rates.costs_off(study, arm) for arm in (CANDIDATE, ADAMS[0])}
    where = {"the embedding": (1, 0), "the head": (0, 1), "both": (1, 1)}
    rows = [
        [title, name, *(f"{found[x**a, x**b]:+.3f}" for x in stages.OFF)]
        for title, found in zip(
            ("Ember, Adafactor decay", "Adam (0.8, 0.95)"), costs.values(), strict=True
        )
        if found
        for name, (a, b) in where.items()
    ]
    head = ["tables", "rate that is off", *(f"times {x:g}" for x in stages.OFF)]
    return markdown(head, rows, left=2)


def rules(study: Study) -> str:
    """Returns the table of what rules for width, batch and length cost."""
    rows = []
    for arm, name in ((CANDIDATE, "Ember, Adafactor decay"), (ADAMS[0], "Adam")):
        for cost in scaling.costs(study, arm):
            powers = [
                f"{embed:g}, {head:g}"
                for embed, head in map(cost.rule.exponents, scaling.FACTORS)
            ]
            largest = max(cost.costs, key=lambda where: cost.costs[where])
            worst = f"{cost.costs[largest]:.3f} ({largest})"
            mean_cost = f"{scaling.mean(cost):.3f}"
            rows.append([name, cost.rule.title, *powers, mean_cost, worst])
    head = ["tables", "rule", "power of the width", "of the tokens in a step"]
    head += ["of the length", "mean cost", "largest"]
    return markdown(head, rows, left=2) if rows else NOT_FINISHED


def rare_tokens(study: Study) -> str:
    """Returns the table of predicted against actual frequencies."""
    loss, found = rare.at_equal_loss(study)
    rows = [
        [row.title, f"{row.mean:.3f}", *(f"{e:+.2f}" for e in errors)]
        for row, errors in found
    ]
    head = ["tables", "final loss", *rare.CLASSES]
    note = (
        f"Log(predicted / actual) at a validation loss of {loss:.3f}, by occurrences."
    )
    return f"{note}\n\n{markdown(head, rows, left=1)}" if rows else NOT_FINISHED


NOT_FINISHED = "Not finished."
HEAD = ["tables", "rate of the embedding", "of the head", "loss"]


def _cells(row: Row) -> list[str]:
    lr, head_lr = row.settings.lr, row.settings.head_lr
    return [f"{lr:.2g}", "" if head_lr is None else f"{head_lr:.2g}", mean(row)]


def mean(row: Row) -> str:
    if not math.isfinite(row.mean):
        return "diverged"
    return f"{row.mean:.3f} ± {row.deviation:.3f}"


def minus(row: Row, rival: Row | None) -> str:
    """Returns row - rival, or nothing where there is no other row."""
    if rival is None or rival.settings == row.settings:
        return ""
    return str(difference(row, rival))
