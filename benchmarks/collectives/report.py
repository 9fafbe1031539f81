"""Table of docs/sharding.md."""

import itertools
from pathlib import Path
from typing import Any

from benchmarks.common import store
from benchmarks.common.tables import markdown

RESULTS = Path(__file__).with_name("results.json")
SHOWN = "v5p:4x4x4"  # its state is shown; the only mesh that Muon is compiled for
ABBREVIATIONS = {
    "all-reduce": "AR",
    "all-gather": "AG",
    "all-to-all": "A2A",
    "reduce-scatter": "RS",
    "collective-permute": "CP",
}


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    return {"collectives": table(store.read_object(RESULTS)["measured"])}


def table(measured: dict[str, Any]) -> str:
    """Returns the collectives of a step by optimizer, layout and mesh."""
    by_optimizer = measured[SHOWN]
    layouts = next(iter(by_optimizer.values()))
    rows = []
    for optimizer, layout in itertools.product(by_optimizer, layouts):
        by_mesh = [x[optimizer].get(layout) for x in measured.values()]
        state = _megabytes(by_optimizer[optimizer][layout]["state_bytes"])
        cells = [_cell(m["collectives"]) if m else "not compiled" for m in by_mesh]
        rows.append([optimizer, layout, state, *cells])
    head = ["optimizer", "tables sharded by", f"state, {SHOWN}", *measured]
    return markdown(head, rows, left=2)


def _cell(by_kind: dict[str, dict[str, int]]) -> str:
    """Returns `1 AR + 2 AG, 1.23 MB`."""
    if not by_kind:
        return "none"
    numbers = [f"{x['number']} {ABBREVIATIONS[op]}" for op, x in by_kind.items()]
    total = sum(x["bytes"] for x in by_kind.values())
    return f"{' + '.join(numbers)}, {_megabytes(total)}"


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.2f} MB"
