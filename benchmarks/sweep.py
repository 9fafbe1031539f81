"""The sweep behind the tuned values of configs/pretrain_small.py.

    python -m benchmarks.sweep body    # learning rate of the body, with two tables
    python -m benchmarks.sweep tables  # learning rate and b2 of every table optimizer
    python -m benchmarks.sweep full    # the best of these at full length
    python -m benchmarks.sweep seeds   # Ember and Adam at their best, other seeds
    python -m benchmarks.sweep --report

Each finished run is a line in benchmarks/results/sweep.jsonl and is not run again.
`body` and `tables` use shortened runs, one seed.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flax import nnx

from benchmarks import results
from benchmarks.results import markdown
from configs.pretrain_small import get_config
from examples.lm import Config, data, training
from examples.lm.optimizer import table_state_bytes
from examples.lm.program import make_model

RESULTS = results.RESULTS / "sweep.jsonl"
SHORT = {"steps": 150, "eval_every": 150}
BODY_LEARNING_RATE = 2e-3  # what the stage `body` found
SEEDS = (1, 2, 3)  # the sweep has seen seed 0

Run = dict[str, Any]  # settings that differ from the config, by dotted name


def body_runs() -> Iterable[Run]:
    for rate, name in itertools.product((1e-3, 2e-3, 5e-3, 1e-2), ("ember", "adam")):
        yield _short(name, 3e-2, 0.999) | {"body.learning_rate": rate}


def table_runs() -> Iterable[Run]:
    # Ember and Adam get the same grid.
    for name in ("ember", "adam"):
        for rate in (3e-3, 1e-2, 3e-2, 1e-1, 3e-1):
            yield _short(name, rate, 0.999)
        for b2, rate in itertools.product((0.99, 0.95), (1e-2, 3e-2, 1e-1)):
            yield _short(name, rate, b2)
    # Two more around the best of each.
    for rate in (5e-3, 2e-2):
        yield _short("ember", rate, 0.999)
    for rate in (5e-2, 2e-1):
        yield _short("adam", rate, 0.95)
    for rate in (1e-2, 3e-2, 1e-1):
        yield _short("adam_no_momentum", rate, 0.999)
        yield _short("sm3", 10 * rate)
    for rate in (0.1, 0.3, 1.0):
        yield _short("adafactor", rate)
    for rate in (3.0, 10.0, 30.0, 100.0):
        yield _short("sgd", rate)


def full_runs() -> Iterable[Run]:
    """The best of the short runs, and their neighbours, at full length."""
    for rate in (5e-3, 1e-2, 2e-2):
        yield _full("ember", rate, 0.999)
    yield _full("ember", 1e-2, 0.95)
    for rate in (3e-2, 5e-2, 1e-1, 2e-1):
        yield _full("adam", rate, 0.95)


def seed_runs() -> Iterable[Run]:
    config: Config = get_config()
    for seed, name in itertools.product(SEEDS, ("ember", "adam")):
        tuned = config.tables.tuned[name]
        yield _full(name, tuned.learning_rate, tuned.b2) | {"seed": seed}


STAGES = {
    "body": body_runs,
    "tables": table_runs,
    "full": full_runs,
    "seeds": seed_runs,
}


def execute(run: Run, tokens: data.Tokens) -> dict[str, Any]:
    """Trains one model and returns what is kept of it."""
    config: Config = get_config()
    config.update_from_flattened_dict(run)
    params = nnx.state(nnx.eval_shape(lambda: make_model(config)), nnx.Param)
    with tempfile.TemporaryDirectory() as workdir:
        result = training.train(config, tokens, Path(workdir, config.tables.optimizer))
    if result.step < config.steps:
        raise SystemExit("Interrupted; the finished runs are kept.")
    last = [r["loss"] for r in result.records if "loss" in r][-20:]
    return {
        "run": run,
        "validation_loss": result.validation_loss,
        "train_loss": statistics.mean(last),  # of the last 20 steps
        "seconds": round(result.seconds, 1),
        "table_state_bytes": table_state_bytes(config, params),
        "seed": config.seed,
        "config": config.to_dict(),
    } | results.provenance()


def finished() -> list[dict[str, Any]]:
    """Returns the results so far."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [json.loads(line) for line in lines]


def report() -> str:
    """Returns the results as Markdown."""
    runs = sorted(finished(), key=lambda r: (_arm(r), r["seed"]))
    short = [r for r in runs if r["config"]["steps"] == SHORT["steps"]]
    full = [r for r in runs if r["config"]["steps"] != SHORT["steps"]]
    head = ["tables", "body", "validation loss", "train loss"]
    parts = [f"Short runs, {SHORT['steps']} steps, seed 0:"]
    parts += [
        markdown(head, map(_cells, short)),
        "Runs of full length, seed 0:",
    ]
    parts += [markdown(head, [_cells(r) for r in full if r["seed"] not in SEEDS])]
    again = itertools.groupby((r for r in full if r["seed"] in SEEDS), key=_arm)
    head = ["tables", "body", "seeds", "validation loss", "mean", "deviation", "bytes"]
    parts += ["Runs of full length, other seeds, with the state of the tables:"]
    parts += [markdown(head, (_summary(list(group)) for _, group in again))]
    return "\n\n".join(parts)


def _cells(result: dict[str, Any]) -> list[str]:
    tables, body = result["config"]["tables"], result["config"]["body"]
    b2 = f", b2 {tables['b2']:g}" if tables["b2"] else ""
    return [
        f"{tables['optimizer']} {tables['learning_rate']:g}{b2}",
        f"{body['optimizer']} {body['learning_rate']:g}",
        f"{result['validation_loss']:.3f}",
        f"{result['train_loss']:.3f}",
    ]


def _summary(arm: list[dict[str, Any]]) -> list[str]:
    losses = [result["validation_loss"] for result in arm]
    return [
        *_cells(arm[0])[:2],
        ", ".join(str(result["seed"]) for result in arm),
        ", ".join(f"{loss:.3f}" for loss in losses),
        f"{statistics.mean(losses):.3f}",
        f"{statistics.stdev(losses):.3f}" if len(losses) > 1 else "",
        f"{arm[0]['table_state_bytes']:,}",
    ]


def _arm(result: dict[str, Any]) -> tuple[Any, ...]:
    tables, body = result["config"]["tables"], result["config"]["body"]
    tables = tables["optimizer"], tables["b2"] or 0, tables["learning_rate"]
    return *tables, body["optimizer"], body["learning_rate"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="stage", help=", ".join(STAGES))
    parser.add_argument("--report", action="store_true", help="print all as Markdown")
    arguments = parser.parse_args()
    done = [result["run"] for result in finished()]
    config: Config = get_config()
    tokens = data.load(**config.data)
    for run in (run for stage in arguments.stages for run in STAGES[stage]()):
        if run not in done:
            result = execute(run, tokens)
            with RESULTS.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{result['validation_loss']:.3f} {run}", flush=True)
    if arguments.report:
        print(report())


def _short(name: str, rate: float, b2: float | None = None) -> Run:
    return _tables(name, rate, b2) | {"body.learning_rate": BODY_LEARNING_RATE} | SHORT


def _full(name: str, rate: float, b2: float) -> Run:
    config: Config = get_config()
    body = {"body.learning_rate": config.body.tuned[config.body.optimizer]}
    return _tables(name, rate, b2) | body | {"steps": config.steps}


def _tables(name: str, rate: float, b2: float | None) -> Run:
    run = {"tables.optimizer": name, "tables.learning_rate": rate}
    return run if b2 is None else run | {"tables.b2": b2}


if __name__ == "__main__":
    main()
