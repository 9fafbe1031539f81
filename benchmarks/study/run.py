r"""The study: which optimizer of token tables is best, at small scale.

    python -m benchmarks.study.run                        # whatever is missing
    python -m benchmarks.study.run arms mixed             # only these stages
    python -m benchmarks.study.run --results=mine.jsonl   # everything, from scratch
    python -m benchmarks.study.run --row=arms/ember       # a row of the evidence
    python -m benchmarks.study.run --only='{"arm": "ember", "lr": 0.01, ...}'
    make report                                           # docs/evidence.md

Each finished run is a line in benchmarks/study/results.jsonl and is not run again. The
exceptions are --row, a row of docs/evidence.md, and --only, the "settings" of a line:
both print the new losses next to those on file. Start the program once on every core
(with taskset on Linux) to share the work: no run is done twice. On Linux,
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment saves a third of the time.

Stages; each first does the earlier runs that it needs:

    body    learning rate of the body, for Ember and Adam together
    arms    every optimizer at its best pair of learning rates, five new seeds
    mixed   Ember on one table, Adam on the other
    linux   natural English: needs `make linux-doc`
    tied    one table for input and output
    muon    Muon as the optimizer of the body
    batch   8 to 512 sequences of 16 tokens
    width   two more widths
    length  a quarter of the tokens, and four times as many
    decay   weight decay of the tables
    rare    predicted against actual frequencies of tokens
    rounding  tables in bfloat16, rounded to the nearest or stochastically
    large   a model eleven times larger
    plane   a coarse grid over both learning rates, for Ember and for Adam
    off     rates that are off by a factor
    rule    rates by rules for width, batch and length
    shared_*  the first study, with one rate for both tables

One more runs only when named, since it needs a GPU and your own text of ten million
tokens or more:

    python -m benchmarks.study.run scale --text='texts/*.txt' --results=mine.jsonl

    scale   162 million parameters with a vocabulary of 50,257
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks.common import store
from benchmarks.common.provenance import provenance
from benchmarks.common.store import Run
from benchmarks.study import scaling, settings, shared, stages
from benchmarks.study.report import RESULTS
from benchmarks.study.settings import Settings
from benchmarks.study.training import CONFIGS, execute
from examples.lm import Config, data

MODULES = (stages, scaling, shared)
Load = Callable[[Settings], tuple[data.Tokens, int]]
"""Returns the tokens of a run and the size of their vocabulary."""


def work(names: list[str], path: Path, load: Load) -> None:
    """Does all runs of the stages that are neither finished nor in progress."""
    while runs := missing(names, path):
        for run in runs:
            with store.claim(path, dataclasses.asdict(run)) as is_mine:
                if is_mine:
                    finish(run, path, load)
                    break
        else:
            time.sleep(5)  # other processes do all that can be done now


def missing(names: list[str], path: Path) -> list[Settings]:
    losses = settings.losses_of(settings.read(path))
    modules = {stage: module for module in MODULES for stage in module.STAGES}
    lists = [modules[name].missing(name, losses) for name in names]
    return list(dict.fromkeys(itertools.chain(*lists)))


def finish(run: Settings, path: Path, load: Load) -> None:
    """Does a run and writes its line."""
    result = execute(run, *load(run)) | provenance()
    store.append(path, result)
    print(f"{len(store.read(path)):4} {describe(result)}", flush=True)


def describe(result: Run) -> str:
    run, loss = result["settings"], result["validation_loss"]
    defaults = {f.name: f.default for f in Settings.__dataclass_fields__.values()}
    changed = " ".join(f"{k}={v}" for k, v in run.items() if v != defaults[k])
    found = "diverged" if loss is None else f"{loss:.4f}"
    return f"{found} {result['seconds']:5.1f} s  {changed}"


def rerun(runs: list[Settings], path: Path, load: Load) -> None:
    """Does runs, finished or not, and prints their losses next to those on file."""
    old = settings.read(path)
    for run in runs:
        if run in old:
            print("old", describe(old[run]))
        print("new", describe(execute(run, *load(run))), flush=True)


def runs_of_row(row: str, path: Path) -> list[Settings]:
    """Returns the runs behind a row of the evidence."""
    rows = {
        stages.name_of(stage, case): (module, case)
        for module in (stages, shared)
        for stage, cases in module.CASES.items()
        for case in cases
    }
    if row not in rows:
        raise SystemExit(f"There is no row {row!r}; the rows are {', '.join(rows)}.")
    try:
        module, case = rows[row]
        return module.seeded(case, settings.losses_of(settings.read(path)))
    except shared.WaitingFor as waiting:
        raise SystemExit(
            f"The learning rate of {row} is not tuned: {waiting}."
        ) from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="all by default")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="file of the runs"
    )
    parser.add_argument("--row", help="name of a row of docs/evidence.md to run again")
    parser.add_argument("--only", type=json.loads, help="settings of a run, as JSON")
    parser.add_argument("--text", help="files to train on, as in examples.pretrain")
    arguments = parser.parse_args()
    known = [stage for module in MODULES for stage in module.STAGES]
    if unknown := set(arguments.stages) - set(known):
        parser.error(f"unknown stage {min(unknown)!r}, known: {', '.join(known)}")
    path = arguments.results
    if arguments.text and path == RESULTS:
        parser.error("--text needs --results: all runs in a file share one text")
    runs = [Settings(**arguments.only)] if arguments.only else []
    if arguments.row:
        runs += runs_of_row(arguments.row, path)
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(".cache/jax"))

    @functools.cache
    def load_text(config: str, text: str, vocab: int | None) -> tuple[data.Tokens, int]:
        options: Config = CONFIGS[config].get_config().data
        options.path = arguments.text or settings.TEXTS[text]
        options.vocab_size = vocab or options.vocab_size
        return data.load(**options), options.vocab_size

    def load(run: Settings) -> tuple[data.Tokens, int]:
        return load_text(run.config, run.text, run.vocab)

    if runs:
        rerun(runs, path, load)
    else:
        everything = [*shared.STAGES, *stages.ON_CPU, *scaling.STAGES]
        work(arguments.stages or everything, path, load)


if __name__ == "__main__":
    main()
