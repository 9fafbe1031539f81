"""The finetuning runs, the most important ones first."""

import itertools
from pathlib import Path
from typing import Any

from benchmarks.common.store import Settings

RESULTS = Path(__file__).with_name("results.jsonl")
TASKS = ("signatures", "definitions")
SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2, 3e-4, 3e-5, 1e-5)
COMMON = {"task": "signatures", "seed": 0, "steps": 40, "tied": True, "body_rate": 1e-4}
FROZEN = COMMON | {"tables": "frozen"}
ADAMW = COMMON | {"tables": "adamw", "head_rate": 1e-4}
EMBER = COMMON | {"tables": "ember", "head_rate": 1e-4, "b2": 0.999, "eps": 1e-8}
ADAFACTOR = EMBER | {"b2": None}
ARMS = {
    "frozen": FROZEN,
    "AdamW": ADAMW,
    "Ember, b2 0.999": EMBER,
    "Ember, Adafactor decay": ADAFACTOR,
}


def plan() -> list[Settings]:
    """Returns the settings of all runs, without duplicates."""
    runs = [{"tables": "before", "task": task, "seed": 0} for task in TASKS]
    runs += [FROZEN, *grid(**EMBER | {"head_rate": (1e-4, 1e-3, 1e-2)})]
    runs += grid(**ADAMW | {"head_rate": (1e-4, 1e-3)})
    runs += grid(**EMBER | {"head_rate": (3e-4, 3e-3)})
    runs += grid(**ADAMW | {"head_rate": (3e-4,)})
    # Another task.
    second = {"task": "definitions"}
    runs += [arm | second for arm in (EMBER, EMBER | {"head_rate": 1e-3}, FROZEN)]
    runs += grid(**ADAFACTOR | {"head_rate": (1e-4, 1e-3)})
    runs += [arm | second for arm in (ADAMW, EMBER | {"head_rate": 3e-4})]
    runs += [ADAMW | second | {"head_rate": 1e-3}]
    # Ten new rows alone.
    for tables, rate in (("ember", 1e-2), ("adamw", 1e-2), ("ember", 3e-3)):
        new = {"task": "new tokens", "steps": 20, "tables": tables, "head_rate": rate}
        runs.append(new)
    # More seeds at the best.
    best = (FROZEN, EMBER, ADAMW)
    runs += [arm | {"seed": seed} for seed in SEEDS[1:] for arm in best]
    runs += grid(**EMBER | {"head_rate": 1e-3, "eps": (1e-6, 1e-5)})
    # Does the best rate of the table follow the body's?
    runs += grid(**EMBER | {"body_rate": 3e-4, "head_rate": (1e-4, 3e-4)})
    runs += [arm | {"body_rate": 3e-4} for arm in (FROZEN, ADAMW)]
    runs += [arm | {"body_rate": 3e-5} for arm in (FROZEN, EMBER, ADAMW)]
    # A model with two tables.
    untied = {"tied": False}
    runs += [FROZEN | untied]
    for arm in (EMBER, ADAMW):
        for embed, head in ((1e-4, 1e-4), (1e-3, 1e-4), (1e-4, 1e-3)):
            runs.append(arm | untied | {"embed_rate": embed, "head_rate": head})
    # What is left of the grid.
    for arm in (ADAMW, ADAFACTOR, EMBER):
        runs += grid(**arm | {"head_rate": RATES})
    return [run for i, run in enumerate(runs) if run not in runs[:i]]


def grid(**choices: Any) -> list[Settings]:
    """Returns the product of choices: each a value, or a tuple of values."""
    values = [x if isinstance(x, tuple) else (x,) for x in choices.values()]
    return [dict(zip(choices, x, strict=True)) for x in itertools.product(*values)]
