"""The generated parts of docs/evidence.md, choosing.md and pretraining.md.

    python -m benchmarks.study.report --results=mine.jsonl

prints them for your own runs, once all stages are finished.
"""

import math
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.common.command import make_parser
from benchmarks.common.intervals import MARGIN
from benchmarks.common.store import Run
from benchmarks.common.tables import markdown, paragraphs
from benchmarks.study import (
    advice,
    figures,
    practice,
    practice_report,
    rare_tokens,
    settings,
    stages,
)
from benchmarks.study.claims import VERDICTS, claims
from benchmarks.study.comparisons import (
    ADAMS,
    CANDIDATE,
    ELSEWHERE,
    HEAD,
    Comparison,
    Row,
    Study,
    cells_of,
    difference,
    planned,
    setting,
)
from benchmarks.study.training import CLASSES

RESULTS = Path(__file__).with_name("results.jsonl")


def parts(results: Path = RESULTS) -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    study = Study(settings.read(results))
    return {
        "study.headline": headline(study),
        "study.runs": runs(study),
        "study.claims": markdown(["claim", "finding", "verdict"], claims(study)),
        "study.losing": losing(study),
        "study.settings": by_setting(study),
        "study.large": large(study),
        "study.arms": arms(study),
        "study.elsewhere": elsewhere(study),
        "study.rare": frequencies(study),
        "study.decay": decay(study),
        "study.rounding": rounding(study),
        "study.pretrain": pretrain(study),
        "study.mistuned": mistuned(study),
        "study.practice": practice_report.main_setting(study),
        "study.practice_elsewhere": practice_report.other_settings(study),
        "study.rates": advice.by_rule(study),
        "study.advice": advice.by_situation(study),
        "study.rule": advice.rule_costs(study),
        "study.body": advice.body_rates(study),
        "study.wide": advice.wide_search(study),
        "study.rare_loss": rare_tokens.by_class(study),
    }


def draw() -> None:
    figures.draw_all(Study(settings.read(RESULTS)), RESULTS.parent)


def headline(study: Study) -> str:
    """Returns the results against Adam and against a constant b2, as a paragraph."""
    rivals = practice_report.rivals(study)
    listed = ", ".join(f"{x.mean:+.3f} for {name}" for name, x in rivals.items())
    longer, verdicts = practice_report.claim_of_length(study)
    found = planned(study)
    adam, constant = (
        {v: [c for c in found[key] if c.difference.verdict == v] for v in VERDICTS}
        for key in ("adam", "constant")
    )
    means = sorted(-c.difference.mean for c in adam["better"])
    undecided = " and ".join(setting(c.candidate.settings) for c in adam["undecided"])
    return paragraphs(
        f"""**In a model as people build it**, each optimizer with a pair of learning
        rates searched for it, Ember's validation loss minus the rival's is {listed}
        after 256 steps (figure). **In longer runs**: {longer};
        {verdicts}. In an earlier plan, with a small initial embedding and no norm
        behind it, the loss is lower than tuned Adam's in {len(adam["better"])} of
        {len(found["adam"])} settings, by {means[0]:.3f} to {means[-1]:.3f} nats,
        non-inferior in {len(adam["non-inferior"])} (the 95% interval ends below
        +{MARGIN}) and undecided in {len(adam["undecided"])} ({undecided}). With the
        paper's fixed b2 of 0.999 Ember is worse than with a growing one in
        {len(constant["better"])} settings. All of this is small scale: up to 22 million
        parameters, most of it 256 steps."""
    )


def runs(study: Study) -> str:
    """Returns a paragraph on the number, cost and machines of all runs."""
    hours = sum(run["seconds"] for run in study.runs.values()) / 3600
    machines = Counter(map(machine, study.runs.values())).most_common()
    diverged = sum(not math.isfinite(loss) for loss in study.losses.values())
    adamw, muon = (stages.best_body_rate(x, study.losses) for x in ("adamw", "muon"))
    return paragraphs(
        f"""The {len(study.runs)} runs took {hours:.1f} hours:
        {"; ".join(f"{count} on {name}" for name, count in machines)}. {diverged}
        diverged. The learning rate of the body is {adamw:g} for AdamW and {muon:g} for
        Muon."""
    )


def machine(run: Run) -> str:
    device, jax = run["machine"]["device"], run["versions"]["jax"]
    core = f"a core of {run['machine']['processor']}"
    return f"{core if device == 'cpu' else device} (jax {jax})"


def losing(study: Study) -> str:
    """Lists the planned comparisons that the candidate neither wins nor draws."""
    found = [c for family in planned(study).values() for c in family]
    lines = [
        f"- {c.difference.verdict}: {c.rival.title}, {setting(c.candidate.settings)},"
        f" {c.difference}"
        for c in found
        if c.difference.verdict in ("worse", "undecided")
    ]
    head = f"Of {len(found)} planned comparisons, {len(lines)} are undecided or worse:"
    return "\n".join([head, "", *lines])


def by_setting(study: Study) -> str:
    """Returns the first two families of comparisons, by setting."""
    found = planned(study)
    rows = [
        [setting(a.candidate.settings), a.rival.title, *shown(a), *shown(b)]
        for a, b in zip(found["adam"], found["constant"], strict=True)
    ]
    head = ["setting", "better Adam", "Ember minus Adam", "verdict"]
    return markdown([*head, "Ember minus Ember, b2 0.999", "verdict"], rows)


def large(study: Study) -> str:
    rows = [[c.rival.title, *shown(c)] for c in planned(study)["large"]]
    return markdown(["rival", "Ember minus rival", "verdict"], rows)


def arms(study: Study) -> str:
    """Returns all optimizers in the main setting, best first."""
    found = planned(study)
    compared = {c.rival.name: shown(c) for c in [*found["arms"], found["constant"][0]]}
    rows = sorted(study.rows("arms") + study.rows("mixed"), key=lambda row: row.mean)
    cells = [
        [
            *cells_of(row),
            *compared.get(row.name, ("", "")),
            f"{row.state_bytes:,}",
            f"`{row.name}`",
        ]
        for row in rows
    ]
    head = [*HEAD, "Ember minus this", "verdict", "state, bytes", "name"]
    return markdown(head, cells, left=1)


def elsewhere(study: Study) -> str:
    rows = [row for stage in ELSEWHERE for row in study.rows(stage)]
    cells = [[setting(row.settings), *cells_of(row), f"`{row.name}`"] for row in rows]
    return markdown(["setting", *HEAD, "name"], cells, left=2)


def frequencies(study: Study) -> str:
    """Returns predicted against actual frequencies, at the same loss for all arms.

    The loss is the final loss of the worst arm. Errors, log(predicted / actual), are
    interpolated between the measurements of a run, and are means over seeds.
    """
    rows = study.rows("rare")
    loss = max(row.mean for row in rows)
    cells = []
    for row, case in zip(rows, stages.CASES["rare"], strict=True):
        errors = []
        for run in stages.seeded(case, study.losses):
            measured = np.array(study.runs[run]["frequency_errors"], float)[::-1]
            columns = measured[:, 2:].T  # validation has a dozen tokens of class 0
            errors.append([np.interp(loss, measured[:, 0], x) for x in columns])
        means = [f"{x:+.2f}" for x in np.nanmean(errors, axis=0)]
        cells.append([row.title, f"{row.mean:.3f}", *means])
    head = ["tables", "final loss", *CLASSES[1:]]
    note = (
        f"Log(predicted / actual) at a validation loss of {loss:.3f}, by occurrences:"
    )
    return f"{note}\n\n{markdown(head, cells, left=1)}"


def decay(study: Study) -> str:
    rows = study.rows("decay")
    cells = [
        [*cells_of(row), str(difference(row, study.arm(row.settings.arm)))]
        for row in rows
    ]
    return markdown([*HEAD, "minus the same without decay"], cells, left=1)


def rounding(study: Study) -> str:
    """Returns tables in bfloat16 next to tables in float32."""
    cells = []
    for stage, length in (("arms", {}), ("length", {"tokens": stages.LENGTHS[-1]})):
        ember, adam = (
            study.row(stage, {"arm": arm} | length) for arm in (CANDIDATE, ADAMS[0])
        )
        rounded = [
            row
            for row in study.rows("rounding")
            if row.settings.tokens == ember.settings.tokens
        ]
        for row in (ember, adam, *rounded):
            kind = row.settings.rounding
            cost = "" if row is ember else str(difference(row, ember))
            dtype = f"bfloat16, {kind}" if kind else "float32"
            cells.append(
                [
                    *(setting(row.settings), dtype, *cells_of(row)),
                    *(cost, f"{bytes_a_parameter(row):.2f}"),
                ]
            )
    head = ["setting", "dtype, rounding", *HEAD, "minus Ember, float32"]
    return markdown([*head, "bytes a parameter"], cells, left=3)


def bytes_a_parameter(row: Row) -> float:
    """Returns the bytes of weight, gradient and optimizer state of the tables."""
    parameters = 2 * row.settings.width * settings.VOCAB_SIZE
    return 2 * (2 if row.settings.rounding else 4) + row.state_bytes / parameters


def pretrain(study: Study) -> str:
    """Formats the comparison of `make pretrain`, with more seeds."""
    rows = [
        study.row_of(arm, practice.seeded({"arm": arm}, study.losses))
        for arm in practice.PAIR
    ]
    cells = [[*cells_of(row), f"{row.state_bytes:,}"] for row in rows]
    return markdown([*HEAD, "state of the tables, bytes"], cells, left=1)


def mistuned(study: Study) -> str:
    """Returns the cost of the best rates times a factor."""
    rows = []
    for arm in (CANDIDATE, ADAMS[0]):
        best = study.losses[stages.tuned({"arm": arm}, study.losses)]
        runs = stages.mistuned(arm, study.losses)
        losses = {factors: study.losses[run] for factors, run in runs.items()}
        where = {"the embedding": (1, 0), "the head": (0, 1), "both": (1, 1)}
        for name, (a, b) in where.items():
            costs = [f"{losses[x**a, x**b] - best:+.3f}" for x in stages.FACTORS]
            rows.append([study.arm(arm).title, name, *costs])
    head = ["tables", "mistuned rate", *(f"times {x:g}" for x in stages.FACTORS)]
    return markdown(head, rows, left=2)


def shown(c: Comparison) -> tuple[str, str]:
    return str(c.difference), c.difference.verdict


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="file of the runs")
    try:
        for name, text in parts(parser.parse_args().results).items():
            print(f"{name}\n\n{text}\n")
    except stages.Unfinished as unfinished:
        raise SystemExit(f"Finish the study first: {unfinished}.") from unfinished


if __name__ == "__main__":
    main()
