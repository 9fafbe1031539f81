r"""Makes docs/evidence.md and its figures from the finished runs: `make report`.

    python -m benchmarks.evidence --results=mine.jsonl --page=mine.md

Every number on the page comes from the file of runs, and every judgement from the rule
in `benchmarks.study_rows`.
"""

import argparse
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path

from benchmarks import study_figures
from benchmarks.evidence_claims import claims
from benchmarks.study_rows import MARGIN, Row, Study, difference, setting
from examples.optimizer_study import STUDY
from examples.study import records, stages

PAGE = Path("docs", "evidence.md")
RERUN = "python -m examples.optimizer_study --row="

SECTIONS = {
    "seeds": (
        "Optimizers of the tables",
        "Everything but the tables is the same in all rows: model, data, schedule,"
        " body AdamW. `factored RMS, debiased` is"
        " `optax.scale_by_factored_rms` with a decay that makes it Ember.",
    ),
    "b2": (
        "The decay b2 of Ember",
        "b2 0.999 and the growing decay 1 - t^-0.8 are in the first table.",
    ),
    "muon": ("Muon as the optimizer of the body", ""),
    "tables": (
        "One table at a time",
        "Ember on the input table (`embed`) or on the output table (`lm_head`), Adam"
        " (b2 0.999) at its own best learning rate on the other.",
    ),
    "tied": ("One table for input and output", ""),
    "batch": (
        "Batch size",
        "The same number of tokens in all rows, in windows of 16 tokens and not 64, so"
        " that the largest batch still makes 32 steps. 512 sequences here are 8192"
        " tokens. The learning rate of the body grows with the root of the tokens in a"
        " step.",
    ),
    "size": ("Width of the model", "Two layers and the same number of tokens in all."),
    "length": (
        "Length of the run",
        "A quarter of the tokens, and four times as many.",
    ),
}


def page(study: Study) -> str:
    """Returns docs/evidence.md."""
    parts = [
        "# Evidence",
        "<!-- Made by `make report` from the finished runs: do not edit. -->",
        introduction(study),
        "## The claims of the paper",
        _markdown(["claim", "what we found", "verdict", "made by"], claims(study)),
        "![Ember minus Adam in every setting]"
        "(../benchmarks/results/study_ember_minus_adam.png)",
        "## Where Ember loses",
        losing(study),
        "## How the learning rates were found",
        tuning(study),
        "![Loss by learning rate](../benchmarks/results/study_lr.png)",
    ]
    for stage, (heading, text) in SECTIONS.items():
        parts += [f"## {heading}", text, table(study, stage), *FIGURES.get(stage, [])]
    return "\n\n".join(part for part in parts if part) + "\n"


FIGURES = {
    "seeds": ["![Loss by state](../benchmarks/results/study_pareto.png)"],
    "b2": ["![Loss by b2](../benchmarks/results/study_b2.png)"],
}


def introduction(study: Study) -> str:
    seconds = sum(record["seconds"] for record in study.records.values())
    run = next(iter(study.records))
    machines = {str(r["machine"]["processor"]) for r in study.records.values()}
    versions = {
        f"jax {r['versions']['jax']}, optax {r['versions']['optax']}"
        for r in study.records.values()
    }
    diverged = sum(not math.isfinite(loss) for loss in study.losses.values())
    n, seeds, hours = len(study.records), len(stages.SEEDS), seconds / 3600
    return _paragraphs(
        f"""**This is small scale.** {n} finished runs of a language model with two
        layers and about a million parameters, most of them {run.tokens:,} tokens long,
        on CPU cores, on the source code of Python's standard library with a vocabulary
        of 4096. The claims of the paper ("Token Geometry",
        [arXiv 2607.01455](https://arxiv.org/abs/2607.01455)) are about models and runs
        that are thousands of times larger. What holds here need not hold there, and
        the other way round.""",
        f"""Losses are validation losses in nats per token, on the same text for all
        runs with windows of the same length. A row is an optimizer at its own best
        learning rate, run with {seeds} seeds that the search for that learning rate had
        not seen; ± is the standard deviation over these seeds. Differences are paired
        by seed (same initial values, same batches) and have 95% intervals (Student's
        t). An optimizer is *better* or *worse* than another when the interval excludes
        0, and *no worse* when it includes 0 and ends below +{MARGIN}; otherwise the
        runs do not decide. Intervals are not corrected for the number of comparisons:
        of twenty, one is expected to be wrong.""",
        f"""The runs took {hours:.1f} hours, each on one core that also did other work
        ({", ".join(sorted(machines))}; {"; ".join(sorted(versions))}). {diverged}
        diverged. All are lines of `benchmarks/results/study.jsonl`. `{RERUN}NAME` runs
        a row of the tables below again and shows the new losses beside those of the
        file; `python -m examples.optimizer_study --results=mine.jsonl` repeats the
        whole study, searches included.""",
    )


def losing(study: Study) -> str:
    """Lists every comparison with an Adam that Ember loses."""
    lines, n = [], 0
    for ember, adam in study.against_adam():
        found, n = difference(ember, adam), n + 1
        if found.verdict == "worse":
            lines.append(f"- {setting(ember)}: {found} against {adam.title}")
    head = f"{len(lines)} of {n} comparisons of Ember (b2 0.999) with an Adam"
    return "\n\n".join([f"{head}{':' if lines else '.'}", "\n".join(lines)]).strip()


def tuning(study: Study) -> str:
    fewest = min(len(stages.sweep(case, study.losses)) for case in stages.ARM_CASES)
    bodies = " and ".join(
        f"{stages.best_body_rate(body, study.losses):g} for {name} (of"
        f" {', '.join(f'{rate:g}' for rate in stages.BODY_RATES[body])})"
        for body, name in (("adamw", "AdamW"), ("muon", "Muon"))
    )
    return _paragraphs(
        f"""The learning rate of the body is the best for Ember and Adam together:
        {bodies}. The learning rate of the tables is searched for each row by
        itself, with one seed: five values a factor of 3.2 apart around a guess (three
        around the best of the main setting for the other rows), further ones while the
        best is at an edge, then both neighbours of the best, a factor of 1.8 away. Each
        optimizer in the main setting was tried at {fewest} or more."""
    )


def table(study: Study, stage: str) -> str:
    rows = study.rows(stage)
    waiting = len(stages.CASES[stage]) - len(rows)
    if stage == "seeds":
        rows.sort(key=lambda row: row.mean)
    cells = [_cells(study, stage, row) for row in rows]
    head = ["tables", "setting", "lr", "loss", "minus Ember"]
    head += ["minus Adam, b2 0.999", "minus Adam, b2 0.95", "state, bytes", "name"]
    note = f"{waiting} rows of this table are not finished." if waiting else ""
    return "\n\n".join(x for x in (_markdown(head, cells) if cells else "", note) if x)


def _cells(study: Study, stage: str, row: Row) -> list[str]:
    # Rows that only Ember has are compared with those of the main setting.
    alone = stage in ("b2", "tables")
    place = ("seeds", {}) if alone else (stage, row.case)
    changes = {k: v for k, v in place[1].items() if k not in ("arm", "b2")}
    arms = ("ember", "adam", "adam95")
    rivals = [study.row(place[0], {"arm": arm} | changes) for arm in arms]
    where = f"Ember on {row.settings.tables} only" if stage == "tables" else ""
    return [
        row.title,
        where or setting(row),
        f"{row.settings.lr:g}",
        _mean(row),
        *(_difference(row, rival) for rival in rivals),
        f"{row.state_bytes:,}",
        f"`{row.name}`",
    ]


def _mean(row: Row) -> str:
    if not math.isfinite(row.mean):
        return "diverged"
    return f"{row.mean:.3f} ± {row.deviation:.3f}"


def _difference(row: Row, rival: Row | None) -> str:
    if rival is None or rival.settings == row.settings:
        return ""
    return str(difference(row, rival))


def _paragraphs(*texts: str) -> str:
    lines = (textwrap.fill(" ".join(text.split()), 92) for text in texts)
    return "\n\n".join(lines)


def _markdown(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=STUDY, help="file of the runs")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write")
    arguments = parser.parse_args()
    study = Study(records.read(arguments.results))
    try:
        arguments.page.write_text(page(study))
    except stages.WaitingFor as waiting:
        raise SystemExit(f"Finish the stage `body` first: {waiting}.") from waiting
    figures = study_figures.draw_all(study, arguments.results.parent)
    print("Wrote", arguments.page, *figures)


if __name__ == "__main__":
    main()
