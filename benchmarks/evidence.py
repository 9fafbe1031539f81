r"""Makes docs/evidence.md and its figures from the finished runs: `make report`.

    python -m benchmarks.evidence --results=mine.jsonl --page=mine.md

Every number on the page comes from the file of runs, and every judgement from the rule
in `benchmarks.study_rows`.
"""

import argparse
import math
import textwrap
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from benchmarks import study_figures
from benchmarks.evidence_claims import claims
from benchmarks.evidence_tables import SECTIONS, by_decay, table
from benchmarks.results import markdown
from benchmarks.study_rows import MARGIN, Study, difference, setting
from examples.optimizer_study import STUDY
from examples.study import records, stages

PAGE = Path("docs", "evidence.md")
ELSEWHERE = {
    "post_training": "Loss of finetuning, reward of GRPO by batch size",
    "geometry_ray": "How straight the paths of rows are, beside random walks",
    "geometry_steps": "Size of a step by frequency of the token",
}
RERUN = "python -m examples.optimizer_study --row="


def page(study: Study, figures: Collection[str] = ()) -> str:
    """Returns docs/evidence.md.

    Args:
      study: the finished runs.
      figures: names of the figures that were drawn.
    """

    def figure(name: str, title: str) -> str:
        link = f"![{title}](../benchmarks/results/{name}.png)"
        return link if name in figures else ""

    parts = [
        "# Evidence",
        "<!-- Made by `make report` from the finished runs: do not edit. -->",
        introduction(study),
        "## The claims of the paper",
        markdown(["claim", "what we found", "verdict", "made by"], claims(study)),
        figure("study_ember_minus_adam", "Ember minus Adam in every setting"),
        "## Where Ember loses",
        losing(study),
        "## How the learning rates were found",
        tuning(study),
        figure("study_lr", "Loss by learning rate of the tables"),
    ]
    parts += [
        "## Finetuning, reinforcement learning and the paths of tokens",
        _paragraphs(
            """Finetuning and reinforcement learning with the trainers of tunix are in
            [post-training](post_training.md), what gradients and paths of tokens look
            like in [geometry](geometry.md)."""
        ),
        *(
            f"![{title}](../benchmarks/results/{name}.png)"
            for name, title in ELSEWHERE.items()
        ),
    ]
    for stage, (heading, text) in SECTIONS.items():
        parts += [f"## {heading}", text, table(study, stage)]
        if stage == "seeds":
            parts.append(figure("study_pareto", "Loss by bytes of state"))
        if stage == "b2":
            parts += [
                figure("study_b2", "Loss of Ember by b2"),
                "In runs of other lengths and with other batches (tables below):",
                by_decay(study),
            ]
    return "\n\n".join(part for part in parts if part) + "\n"


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
        that are far larger and longer. What holds here need not hold there, and the
        other way round.""",
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
    """Counts the comparisons of Ember with an Adam and lists those that it loses."""
    pairs = list(study.against_adam())
    found = [difference(ember, adam) for ember, adam in pairs]
    counts = Counter(d.verdict for d in found)
    verdicts = ("better", "no worse", "undecided", "worse")
    text = ", ".join(f"{verdict} in {counts[verdict]}" for verdict in verdicts)
    lines = [
        f"- {setting(ember)}: {d} against {adam.title}"
        for (ember, adam), d in zip(pairs, found, strict=True)
        if d.verdict == "worse"
    ]
    head = _paragraphs(
        f"""Of {len(pairs)} comparisons of Ember (b2 0.999) with one of the two Adams in
        the same setting, Ember is {text}{":" if lines else "."}"""
    )
    return "\n\n".join([head, "\n".join(lines)]).strip()


def tuning(study: Study) -> str:
    fewest = min(len(stages.sweep(case, study.losses)) for case in stages.ARM_CASES)
    bodies = " and ".join(
        f"{stages.best_body_rate(body, study.losses):g} for {name} (of"
        f" {', '.join(f'{rate:g}' for rate in stages.BODIES[body].rates)})"
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


def _paragraphs(*texts: str) -> str:
    lines = (
        textwrap.fill(" ".join(text.split()), 92, break_on_hyphens=False)
        for text in texts
    )
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=STUDY, help="file of the runs")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write")
    arguments = parser.parse_args()
    study = Study(records.read(arguments.results))
    try:
        figures = study_figures.draw_all(study, arguments.results.parent)
        arguments.page.write_text(page(study, [path.stem for path in figures]))
    except stages.WaitingFor as waiting:
        raise SystemExit(f"Finish the stage `body` first: {waiting}.") from waiting
    print("Wrote", arguments.page, *figures)


if __name__ == "__main__":
    main()
