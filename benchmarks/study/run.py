r"""The study: which optimizer of token tables is best, at small scale.

    python -m benchmarks.study.run                        # all missing runs
    python -m benchmarks.study.run arms mixed             # only these stages
    python -m benchmarks.study.run --results=mine.jsonl   # everything, from scratch
    python -m benchmarks.study.run --row=arms/ember       # a row of the evidence
    make report                                           # docs/evidence.md

Each finished run is a line in benchmarks/study/results.jsonl and is not run again,
except by --row, which prints the new losses next to the recorded ones. Start the
program once on every core (with taskset on Linux) to share the work: no run is done
twice. On Linux, GLIBC_TUNABLES=glibc.malloc.hugetlb=1 saves a third of the time.

Stages; each first does the earlier runs that it needs:

    body      learning rate of the body, for Ember and Adam together
    arms      every optimizer at its best pair of learning rates, five new seeds
    mixed     Ember on one table, Adam on the other
    linux     natural English: needs `make linux-doc`
    tied      one table for input and output
    muon      Muon as the optimizer of the body
    batch     8 to 512 sequences of 16 tokens
    width     two more widths
    length    a quarter of the tokens, and four times as many
    decay     weight decay of the tables
    rare      predicted against actual frequencies of tokens
    rounding  tables in bfloat16, rounded to the nearest or stochastically
    large     a model eleven times larger
    lr_grid   a coarse grid over both learning rates, for Ember and for Adam
    mistuned  the best rates times a factor

Stages of the second plan, a model as in practice (benchmarks/study/practice.py):

    practice_setting     optimizers, QK-norm and weight decay
    practice_width       192, 384 and 768
    practice_batch       32 to 256 sequences of 64 tokens
    practice_length      1,024 to 16,384 steps
    practice_vocabulary  16,384 and 50,304 tokens
    practice_tied        one table for input and output
    practice_body        lower rates of the body at width 768
    practice_advised     16,384 steps at the rates of the main setting
    practice_rule        all widths and batches at the rates of the rules

For an accelerator, and not among the stages that run by default:

    practice_scale       169 million parameters at the rates of the rule
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks.common import store, text
from benchmarks.common.command import make_parser
from benchmarks.common.provenance import provenance
from benchmarks.common.store import Run
from benchmarks.study import practice, settings, stages
from benchmarks.study.report import RESULTS
from benchmarks.study.settings import Losses, Settings
from benchmarks.study.training import execute

PRACTICE = tuple(f"practice_{name}" for name in (*practice.CASES, "rule"))
STAGES = (*stages.STAGES, *PRACTICE)
Load = Callable[[Settings], tuple[text.Tokens, int]]
"""Returns the tokens of a run and the size of their vocabulary."""


def work(names: list[str], path: Path, load: Load) -> None:
    """Does all runs of the stages that are neither finished nor in progress."""
    while runs := missing(names, settings.losses_of(settings.read(path))):
        for run in runs:
            with store.claim(path, dataclasses.asdict(run)) as is_mine:
                if is_mine:
                    result = execute(run, *load(run)) | provenance()
                    store.append(path, result)
                    print(f"{len(store.read(path)):4} {describe(result)}", flush=True)
                    break
        else:
            time.sleep(5)  # other processes do all runs that can be done now


def missing(names: list[str], losses: Losses) -> list[Settings]:
    """Returns the unfinished runs of stages that can be done now."""
    jobs = []
    for name in names:
        if name.startswith("practice_"):
            jobs += practice.jobs(name.removeprefix("practice_"), losses)
        else:
            jobs += stages.jobs(name, losses)
    return list(dict.fromkeys(stages.missing(jobs, losses)))


def describe(result: Run) -> str:
    run, loss = result["settings"], result["validation_loss"]
    defaults = {f.name: f.default for f in dataclasses.fields(Settings)}
    changed = " ".join(f"{k}={v}" for k, v in run.items() if v != defaults[k])
    found = "diverged" if loss is None else f"{loss:.4f}"
    return f"{found} {result['seconds']:5.1f} s  {changed}"


def rerun(row: str, path: Path, load: Load) -> None:
    """Repeats a row and prints its losses next to the recorded ones."""
    old = settings.read(path)
    for run in runs_of_row(row, settings.losses_of(old)):
        if run in old:
            print("old", describe(old[run]))
        print("new", describe(execute(run, *load(run))), flush=True)


def runs_of_row(row: str, losses: Losses) -> list[Settings]:
    rows = {
        stages.name_of(prefix + stage, case): (seeded, case)
        for prefix, cases_of, seeded in (
            ("", stages.CASES, stages.seeded),
            ("practice_", practice.CASES, practice.seeded),
        )
        for stage, cases in cases_of.items()
        for case in cases
    }
    if row not in rows:
        raise SystemExit(f"There is no row {row!r}; the rows are {', '.join(rows)}.")
    seeded, case = rows[row]
    try:
        return seeded(case, losses)
    except stages.Unfinished as unfinished:
        raise SystemExit(f"{row} is not tuned: {unfinished}.") from None


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="all by default")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="file of the runs"
    )
    parser.add_argument("--row", help="name of a row of docs/evidence.md to run again")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - {*STAGES, "practice_scale"}:
        parser.error(f"unknown stage {min(unknown)!r}, known: {', '.join(STAGES)}")
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(".cache/jax"))

    @functools.cache
    def load_text(name: str, vocab: int) -> tuple[text.Tokens, int]:
        return text.load(settings.TEXTS[name], vocab), vocab

    def load(run: Settings) -> tuple[text.Tokens, int]:
        return load_text(run.text, run.vocab or settings.VOCAB_SIZE)

    if arguments.row:
        rerun(arguments.row, arguments.results, load)
    else:
        work(arguments.stages or list(STAGES), arguments.results, load)


if __name__ == "__main__":
    main()
