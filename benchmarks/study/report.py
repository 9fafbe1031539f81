"""docs/evidence.md, its figures, and the tables of README.md, from the finished runs.

    python -m benchmarks.study.report --results=mine.jsonl --page=mine.md

makes the page from runs of your own. Every number on it comes from the file of runs,
and every verdict from the rule in `benchmarks.common.intervals`.
"""

import argparse
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from benchmarks.common.intervals import MARGIN
from benchmarks.common.tables import markdown, paragraphs
from benchmarks.study import figures, settings, stages
from benchmarks.study.claims import claims
from benchmarks.study.rows import Study, difference, setting
from benchmarks.study.tables import SECTIONS, by_decay, summary, table

RESULTS = Path(__file__).with_name("results.jsonl")
PAGE = Path("docs", "evidence.md")
FIGURES = {
    "ember_minus_adam": "Ember minus Adam in every setting",
    "learning_rates": "Loss by learning rate of the tables",
    "pareto": "Loss by bytes of state",
    "b2": "Loss of Ember by b2",
}
ELSEWHERE = {
    "post_training/post_training": "Loss of finetuning, reward of GRPO by batch size",
    "geometry/ray": "How straight the paths of rows are, compared with random walks",
    "geometry/steps": "Size of a step by frequency of the token",
}


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    study = Study(settings.read(RESULTS))
    return {"study.optimizers": summary(study), "study.decay": by_decay(study)}


def pages() -> dict[Path, str]:
    """Returns the pages that are generated as a whole."""
    links = {name: f"../benchmarks/study/{name}.png" for name in FIGURES}
    return {PAGE: page(Study(settings.read(RESULTS)), links)}


def draw() -> None:
    figures.draw_all(Study(settings.read(RESULTS)), RESULTS.parent)


def page(study: Study, links: Mapping[str, str]) -> str:
    """Returns docs/evidence.md.

    Args:
      study: the finished runs.
      links: from the page to the figures that were drawn, by name.
    """

    def figure(name: str) -> str:
        return f"![{FIGURES[name]}]({links[name]})" if name in links else ""

    blocks = [
        "# Evidence",
        "<!-- Made by `make report` from the finished runs: do not edit. -->",
        introduction(study),
        "## The claims of the paper",
        markdown(["claim", "what we found", "verdict", "made by"], claims(study)),
        figure("ember_minus_adam"),
        "## Where Ember loses",
        losing(study),
        "## How the learning rates were found",
        tuning(study),
        figure("learning_rates"),
        "## Finetuning, reinforcement learning and the paths of tokens",
        paragraphs(
            """Finetuning and reinforcement learning with the trainers of tunix are in
            [post-training](post_training.md); how gradients and rows behave is in
            [geometry](geometry.md)."""
        ),
        *(f"![{x}](../benchmarks/{name}.png)" for name, x in ELSEWHERE.items()),
    ]
    for stage, (heading, text) in SECTIONS.items():
        blocks += [f"## {heading}", text, table(study, stage)]
        if stage == "seeds":
            blocks.append(figure("pareto"))
        if stage == "b2":
            blocks += [
                figure("b2"),
                "In runs of other lengths and with other batches (tables below):",
                by_decay(study),
            ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def introduction(study: Study) -> str:
    seconds = sum(run["seconds"] for run in study.runs.values())
    run = next(iter(study.runs))
    machines = {str(r["machine"]["processor"]) for r in study.runs.values()}
    versions = {
        f"jax {r['versions']['jax']}, optax {r['versions']['optax']}"
        for r in study.runs.values()
    }
    diverged = sum(not math.isfinite(loss) for loss in study.losses.values())
    n, seeds, hours = len(study.runs), len(stages.SEEDS), seconds / 3600
    return paragraphs(
        f"""**This is small scale.** {n} finished runs of a language model with two
        layers and about a million parameters, most of them {run.tokens:,} tokens long,
        on CPU cores, on the source code of Python's standard library with a vocabulary
        of 4096. The claims of the paper ("Token Geometry",
        [arXiv 2607.01455](https://arxiv.org/abs/2607.01455)) are about far larger
        models and far longer runs. What holds here need not hold there, and vice
        versa.""",
        f"""Losses are validation losses in nats per token, on the same text for all
        runs with windows of the same length. A row is an optimizer at its own best
        learning rate, run with {seeds} seeds that the search for that rate never saw; ±
        is the standard deviation over these seeds. Differences are paired
        by seed (same initial values, same batches) and have 95% intervals (Student's
        t). An optimizer is *better* or *worse* than another when the interval excludes
        0, and *no worse* when it includes 0 and ends below +{MARGIN}; otherwise the
        comparison is undecided. Intervals are not corrected for the number of
        comparisons: of twenty, one is expected to be wrong.""",
        f"""The runs took {hours:.1f} hours, each on one core of a shared machine
        ({", ".join(sorted(machines))}; {"; ".join(sorted(versions))}). {diverged}
        diverged. Each is a line of `benchmarks/study/results.jsonl`. `python -m
        benchmarks.study.run --row=NAME` repeats a row of the tables below and prints
        the new losses next to those on file; `python -m benchmarks.study.run
        --results=mine.jsonl` repeats the whole study, searches included.""",
    )


def losing(study: Study) -> str:
    """Counts the comparisons of Ember with Adam and lists those that it loses."""
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
    head = paragraphs(
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
    return paragraphs(
        f"""The learning rate of the body is the best for Ember and Adam together:
        {bodies}. The learning rate of the tables is searched for each row separately,
        with one seed: five values a factor of 3.2 apart around a guess (for the other
        settings, three around the best of the main setting), more while the best is at
        an edge, then both neighbors of the best, a factor of 1.8 away. Each optimizer
        was tried at {fewest} or more rates in the main setting."""
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="file of the runs")
    parser.add_argument("--page", type=Path, required=True, help="where to write")
    arguments = parser.parse_args()
    study = Study(settings.read(arguments.results))
    try:
        drawn = figures.draw_all(study, arguments.results.parent)
        links = {x.stem: os.path.relpath(x, arguments.page.parent) for x in drawn}
        arguments.page.write_text(page(study, links))
    except stages.WaitingFor as waiting:
        raise SystemExit(f"Finish the stage `body` first: {waiting}.") from waiting
    print("Wrote", arguments.page, *drawn)


if __name__ == "__main__":
    main()
