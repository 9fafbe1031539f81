"""Tables of docs/performance.md and README.md, and their figure."""

from pathlib import Path
from typing import Any

from benchmarks.common import store
from benchmarks.common.figures import color, plt, save
from benchmarks.common.tables import markdown
from benchmarks.step.compiling import DTYPES, OPTIMIZERS

RESULTS = Path(__file__).with_name("results.json")
TPU = Path(__file__).with_name("tpu.json")
ACCESSED = "bytes_accessed_over_table"

ByDtype = dict[str, dict[str, dict[str, float]]]
"""What was measured on one table: by dtype, optimizer and quantity."""


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    on_cpu = store.read_object(RESULTS)["measured"]
    on_tpu = store.read_object(TPU)["measured"]
    cpu = {f"step.cpu_{table}": cpu_table(x) for table, x in on_cpu.items()}
    tpu = {
        f"step.tpu_{table}_{dtype}": tpu_table(on_tpu, table, dtype)
        for table, dtype in (
            ("256128x2048", "float32"),
            ("256128x2048", "bfloat16"),
            ("50304x768", "float32"),
        )
    }
    both = {
        "step.summary": summary(on_cpu["50304x768"], on_tpu),
        "step.training": training(on_tpu),
    }
    return cpu | tpu | both


def cpu_table(by_dtype: ByDtype) -> str:
    """Returns all that was measured on one table."""
    head = ["", "state"]
    for dtype in by_dtype:
        head += [f"{dtype}: bytes accessed", "temporaries", "time / Adam"]
        head += ["time / floor"]
    rows = []
    for name in by_dtype["float32"]:
        cells = [name, f"{by_dtype['float32'][name]['state_bytes'] / 1e6:,.2f} MB"]
        for by_name in by_dtype.values():
            m = by_name[name]
            cells += [f"{m[ACCESSED]:.2f}", f"{m['temp_bytes'] / 1e6:,.1f} MB"]
            cells += [f"{m['over_adam']:.2f}", f"{m['over_floor']:.2f}"]
        rows.append(cells)
    return markdown(head, rows, left=1)


def tpu_table(measured: dict[str, Any], table: str, dtype: str) -> str:
    """Returns bytes accessed and estimated time on one chip of each family."""
    head = ["", "temporaries, v5p"]
    for family in measured:
        head += [f"{family}: bytes accessed", "time / Adam"]
    rows = []
    for name, on_v5p in measured["v5p"]["tables"][table][dtype].items():
        cells = [name, f"{on_v5p['temp_bytes'] / 1e6:,.1f} MB"]
        for by_family in measured.values():
            by_name = by_family["tables"][table][dtype]
            ours, adams = by_name[name]["seconds"], by_name["Adam"]["seconds"]
            ratio = f"{ours / adams:.2f}" if ours and adams else "no estimate"
            cells += [f"{by_name[name][ACCESSED]:.2f}", ratio]
        rows.append(cells)
    return markdown(head, rows, left=1)


def summary(cpu: ByDtype, on_tpu: dict[str, Any]) -> str:
    """Returns the table of README.md: one table of 50304 x 768."""
    tpu = on_tpu["v5p"]["tables"]["50304x768"]["float32"]
    head = ["tables", "state, float32", "TPU v5p: bytes accessed", "estimated time"]
    head += ["2 CPU cores: time, float32", "bfloat16"]
    rows = []
    for name in ("SGD", "Ember", "Lion", "Adam", "Adafactor"):
        state = cpu["float32"][name]["state_bytes"] / 1e6
        times = [tpu[name]["seconds"] / tpu["Adam"]["seconds"]]
        times += [cpu[dtype][name]["over_adam"] for dtype in DTYPES]
        cells = [name, f"{state:.2f} MB", f"{tpu[name][ACCESSED]:.2f} tables"]
        rows.append([*cells, *(f"{time:.2f}" for time in times)])
    return markdown(head, rows, left=1)


def training(measured: dict[str, Any]) -> str:
    """Returns peak memory of a training step over that of SGD."""
    compared = ("Ember", "Adam")
    head = [f"{family}: {name} / SGD" for family in measured for name in compared]
    rows = []
    for case in measured["v5p"]["training"]:
        peaks = [by_family["training"][case] for by_family in measured.values()]
        ratios = [peak[name] / peak["SGD"] for peak in peaks for name in compared]
        rows.append([case, *(f"{ratio:.3f}" for ratio in ratios)])
    return markdown(["tables", *head], rows, left=1)


def draw() -> None:
    """Draws bytes accessed by each optimizer, and its time by size of the table."""
    measured = store.read_object(RESULTS)["measured"]
    sizes = {table: table.replace("x", " x ") for table in measured}
    panels = [("bytes accessed (XLA's count),\nin sizes of the table", ACCESSED, 1)]
    panels += [
        (f"time of a step, Adam = 1\n{size}", "over_adam", i)
        for i, size in enumerate(sizes.values())
    ]
    figure, axes = plt.subplots(1, 4, figsize=(13, 4), sharey=True, layout="tight")
    for axis, (label, key, i) in zip(axes, panels, strict=True):
        for j, by_name in enumerate(list(measured.values())[i].values()):
            for y, (name, m) in enumerate(by_name.items()):
                place = y + 0.4 * (j - 0.5)
                axis.barh(place, m[key], 0.36, color=color(name), alpha=1 - 0.45 * j)
                text = f" {m[key]:.{1 if key == ACCESSED else 2}f}"
                axis.text(m[key], place, text, va="center", fontsize=6)
        axis.set_yticks(range(len(OPTIMIZERS)), OPTIMIZERS)
        axis.set_xlabel(label)
        axis.set(xscale="log", xlim=(1 if key == ACCESSED else 0.05, 150))
    axes[0].invert_yaxis()
    figure.suptitle("One step on one token table; dark float32, light bfloat16")
    save(figure, RESULTS.with_name("step.png"))
