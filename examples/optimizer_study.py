r"""The study: which optimizer of token tables is best, at small scale.

    python -m examples.optimizer_study                  # all stages, what is missing
    python -m examples.optimizer_study sweep seeds      # some of them
    python -m examples.optimizer_study --results=mine.jsonl   # all from the beginning
    python -m examples.optimizer_study --only='{"arm": "ember", "lr": 0.01, ...}'
    make report                                         # docs/evidence.md from the runs

Each finished run is a line in benchmarks/results/study.jsonl and is not run again,
except by --only, which takes the "settings" of a line and shows both results. Start it
once on every core to share the work (with taskset on Linux): no run is done twice.

Stages, in this order; each does what it needs of earlier ones:

    body    learning rate of the body, for Ember and Adam together
    sweep   learning rate of the tables for every optimizer
    seeds   every optimizer at its best learning rate, five new seeds
    b2      other decays of Ember
    muon    Muon as the optimizer of the body
    tables  Ember on one table, Adam on the other
    tied    one table for input and output
    batch   8 to 512 sequences of 16 tokens
    size    two more widths
    length  a quarter of the tokens, and four times as many
"""

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.results import RESULTS, provenance
from configs.pretrain_small import get_config
from examples.lm import data
from examples.study import records, stages
from examples.study.run import Settings, execute

STUDY = RESULTS / "study.jsonl"


def work(names: list[str], path: Path, tokens: data.Tokens, vocab_size: int) -> None:
    """Does all runs of the stages that are not finished and that nobody else does."""
    while runs := missing(names, path):
        for run in runs:
            with records.claim(path, run) as is_mine:
                if is_mine:
                    finish(run, path, tokens, vocab_size)
                    break
        else:
            time.sleep(5)  # others do all that can be done now


def missing(names: list[str], path: Path) -> list[Settings]:
    losses = records.read_losses(path)
    lists = [stages.missing(name, losses) for name in names]
    return list(dict.fromkeys(itertools.chain(*lists)))


def finish(run: Settings, path: Path, tokens: data.Tokens, vocab_size: int) -> None:
    """Does a run and writes its line."""
    record = execute(run, tokens, vocab_size) | provenance()
    records.append(path, record)
    print(f"{len(records.read(path)):4} {describe(record)}", flush=True)


def describe(record: dict[str, Any]) -> str:
    run, loss = record["settings"], record["validation_loss"]
    defaults = {f.name: f.default for f in Settings.__dataclass_fields__.values()}
    changed = " ".join(f"{k}={v}" for k, v in run.items() if v != defaults[k])
    found = "diverged" if loss is None else f"{loss:.4f}"
    return f"{found} {record['seconds']:5.1f} s  {changed}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="all by default")
    parser.add_argument("--results", type=Path, default=STUDY, help="file of the runs")
    parser.add_argument("--only", type=json.loads, help="settings of one run, as JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.stages) - set(stages.STAGES)
    if unknown:
        parser.error(f"unknown stage {min(unknown)!r}, known: {list(stages.STAGES)}")
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(".cache/jax"))
    config = get_config()
    tokens = data.load(**config.data)
    if not arguments.only:
        names = arguments.stages or list(stages.STAGES)
        work(names, arguments.results, tokens, config.data.vocab_size)
        return
    run = Settings(**arguments.only)
    old = records.read(arguments.results).get(run)
    if old:
        print("then", describe(old))
        print("now ", describe(execute(run, tokens, config.data.vocab_size)))
    else:
        finish(run, arguments.results, tokens, config.data.vocab_size)


if __name__ == "__main__":
    main()
