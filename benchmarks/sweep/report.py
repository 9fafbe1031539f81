"""Tables of README.md, and a list of all runs.

python -m benchmarks.sweep.report  # the list
"""

import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import store
from benchmarks.common.store import Run
from benchmarks.common.tables import markdown
from benchmarks.sweep.plan import BODY_RATE, SEEDS, SHORT

RESULTS = Path(__file__).with_name("results.jsonl")
NAMES = {
    "ember": "Ember",
    "adam": "Adam",
    "adam_no_momentum": "Adam without first moment",
}
RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # those of README.md


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    runs = store.read(RESULTS)
    return {"sweep.rates": rates(runs), "sweep.seeds": seeds(runs)}


def rates(runs: list[Run]) -> str:
    """Returns losses of short runs by optimizer, b2 and learning rate.

    The best of Ember and the best of Adam are bold.
    """
    found: dict[tuple[str, float], dict[float, float]] = {}
    for run in runs:
        tables, body = run["config"]["tables"], run["config"]["body"]
        key, rate = (tables["optimizer"], tables["b2"]), tables["learning_rate"]
        chosen = key[0] in NAMES and rate in RATES and _is_short(run)
        if chosen and body["learning_rate"] == BODY_RATE:
            found.setdefault(key, {})[rate] = run["validation_loss"]
    best = {
        min(
            loss
            for key, losses in found.items()
            for loss in losses.values()
            if key[0] == name
        )
        for name in ("ember", "adam")
    }

    def cell(loss: float | None) -> str:
        if loss is None:
            return ""
        return f"**{loss:.3f}**" if loss in best else f"{loss:.3f}"

    order = sorted(found, key=lambda key: (list(NAMES).index(key[0]), -key[1]))
    rows = [
        [f"{NAMES[key[0]]}, b2 {key[1]:g}", *(cell(found[key].get(r)) for r in RATES)]
        for key in order
    ]
    head = ["tables", f"lr {RATES[0]:g}", *(f"{rate:g}" for rate in RATES[1:])]
    return markdown(head, rows, left=1)


def seeds(runs: list[Run]) -> str:
    """Returns the losses of full runs with seeds that the search has not seen."""
    rows = []
    for same in _by_arm(run for run in runs if run["seed"] in SEEDS):
        tables = same[0]["config"]["tables"]
        name = NAMES[tables["optimizer"]]
        losses = [run["validation_loss"] for run in same]
        rows.append(
            [
                f"{name}, lr {tables['learning_rate']:g}, b2 {tables['b2']:g}",
                f"{statistics.mean(losses):.3f} ± {statistics.stdev(losses):.3f}",
                f"{same[0]['table_state_bytes']:,} bytes",
            ]
        )
    head = ["tables", "validation loss", "optimizer state of the tables"]
    return markdown(head, rows, left=1)


def everything(runs: list[Run]) -> str:
    """Returns all runs as Markdown."""
    runs = sorted(runs, key=lambda run: (_arm(run), run["seed"]))
    full = [run for run in runs if not _is_short(run)]
    head = ["tables", "body", "validation loss", "train loss"]
    again = ["tables", "body", "seeds", "validation loss", "mean", "deviation", "bytes"]
    repeated = _by_arm(run for run in full if run["seed"] in SEEDS)
    return "\n\n".join(
        [
            f"Short runs, {SHORT['steps']} steps, seed 0:",
            markdown(head, map(_cells, filter(_is_short, runs))),
            "Runs of full length, seed 0:",
            markdown(head, [_cells(x) for x in full if x["seed"] not in SEEDS]),
            "Runs of full length, other seeds, with the state of the tables:",
            markdown(again, map(_summary, repeated)),
        ]
    )


def _is_short(run: Run) -> bool:
    return run["config"]["steps"] == SHORT["steps"]


def _by_arm(runs: Iterator[Run]) -> Iterator[list[Run]]:
    ordered = sorted(runs, key=lambda run: (_arm(run), run["seed"]))
    return (list(same) for _, same in itertools.groupby(ordered, key=_arm))


def _arm(run: Run) -> tuple[Any, ...]:
    tables, body = run["config"]["tables"], run["config"]["body"]
    tables = tables["optimizer"], tables["b2"] or 0, tables["learning_rate"]
    return *tables, body["optimizer"], body["learning_rate"]


def _cells(run: Run) -> list[str]:
    tables, body = run["config"]["tables"], run["config"]["body"]
    b2 = f", b2 {tables['b2']:g}" if tables["b2"] else ""
    return [
        f"{tables['optimizer']} {tables['learning_rate']:g}{b2}",
        f"{body['optimizer']} {body['learning_rate']:g}",
        f"{run['validation_loss']:.3f}",
        f"{run['train_loss']:.3f}",
    ]


def _summary(same: list[Run]) -> list[str]:
    losses = [run["validation_loss"] for run in same]
    return [
        *_cells(same[0])[:2],
        ", ".join(str(run["seed"]) for run in same),
        ", ".join(f"{loss:.3f}" for loss in losses),
        f"{statistics.mean(losses):.3f}",
        f"{statistics.stdev(losses):.3f}" if len(losses) > 1 else "",
        f"{same[0]['table_state_bytes']:,}",
    ]


if __name__ == "__main__":
    print(everything(store.read(RESULTS)))
