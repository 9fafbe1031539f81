"""Table and figure of docs/sharding.md."""

import itertools
from pathlib import Path
from typing import Any

from matplotlib.patches import Patch

from benchmarks.common import store
from benchmarks.common.figures import color, plt, save
from benchmarks.common.tables import markdown

RESULTS = Path(__file__).with_name("results.json")
SHOWN = "v5p:4x4x4"  # in the figure; the only mesh that Muon is compiled for
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


def draw() -> None:
    """Draws bytes communicated and bytes of state by optimizer and layout."""
    content = store.read_object(RESULTS)
    (rows, columns), by_optimizer = content["tables"][0], content["measured"][SHOWN]
    panels = {
        "communicated in a step, bytes": lambda m: _total(m["collectives"]),
        "optimizer state on a chip, bytes": lambda m: m["state_bytes"],
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="tight")
    for axis, (label, value_of) in zip(axes, panels.items(), strict=True):
        for i, (optimizer, by_layout) in enumerate(by_optimizer.items()):
            for j, m in enumerate(by_layout.values()):
                y, value = i + 0.27 * (j - 1), value_of(m)
                shade = color(optimizer)
                axis.barh(y, value, 0.24, color=shade, alpha=1 - 0.3 * j)
                text = _megabytes(value)
                if axis is axes[0]:
                    n = sum(x["number"] for x in m["collectives"].values())
                    text = f"{n} collective{'s' * (n > 1)}, {text}" if n else "none"
                axis.text(max(1.2 * value, 1.2e4), y, text, va="center", fontsize=7)
        axis.set(xscale="log", xlim=(1e4, 1e13), xlabel=label)
    axes[0].set_yticks(range(len(by_optimizer)), by_optimizer)
    axes[0].invert_yaxis()
    layouts = list(next(iter(by_optimizer.values())))
    shades = [Patch(color="k", alpha=1 - 0.3 * j) for j in range(len(layouts))]
    axes[1].legend(shades, [f"sharded by {x}" for x in layouts])
    title = f"One step on an embedding and a head of {rows:,} x {columns:,}"
    figure.suptitle(f"{title}, TPU {SHOWN}")
    save(figure, RESULTS.with_name("collectives.png"))


def _cell(by_kind: dict[str, dict[str, int]]) -> str:
    """Returns `1 AR + 2 AG, 1.23 MB`."""
    if not by_kind:
        return "none"
    numbers = [f"{x['number']} {ABBREVIATIONS[op]}" for op, x in by_kind.items()]
    return f"{' + '.join(numbers)}, {_megabytes(_total(by_kind))}"


def _total(by_kind: dict[str, dict[str, int]]) -> int:
    return sum(x["bytes"] for x in by_kind.values())


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.2f} MB"
