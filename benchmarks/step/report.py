"""Tables of docs/performance.md and README.md, and their figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import store
from benchmarks.common.figures import ADAM, EMBER, OTHER, plt, save
from benchmarks.common.tables import markdown
from benchmarks.step.compiling import DTYPES

RESULTS = Path(__file__).with_name("results.json")
TPU = Path(__file__).with_name("tpu.json")
GPU = Path(__file__).with_name("gpu.json")
MEMORY = Path(__file__).with_name("memory.json")
DECODER = Path(__file__).with_name("decoder.json")
DECODER_GPU = Path(__file__).with_name("decoder_gpu.json")
ACCESSED = "bytes_accessed_over_table"
NAMES = {"sgd": "SGD", "ember": "Ember", "adam": "Adam", "adafactor": "Adafactor"}

ByName = dict[str, dict[str, Any]]
"""Measurements on one table in one dtype: by optimizer."""


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    on_cpu, on_tpu, on_gpu = (
        store.read_object(path)["measured"] for path in (RESULTS, TPU, GPU)
    )
    decoder = store.read_object(DECODER)["measured"]
    on_h100 = store.read_object(DECODER_GPU)["measured"]
    of_models = {
        model: by_slice | on_h100.get(model, {}) for model, by_slice in decoder.items()
    }
    cpu = {f"step.cpu_{k}": table(x, ("Adam", "SGD")) for k, x in on_cpu.items()}
    gpu = {f"step.gpu_{k}": table(x) for k, x in on_gpu.items()}
    tpu = {
        f"step.tpu_{table}_{dtype}": tpu_table(on_tpu, table, dtype)
        for table, dtype in (
            ("256128x2048", "float32"),
            ("256128x2048", "bfloat16"),
            ("50304x768", "float32"),
        )
    }
    rest = {
        "step.summary": summary(on_cpu["50304x768"], on_tpu, on_gpu),
        "step.decoder": decoder_table(of_models),
        "step.memory": memory_table(),
    }
    return cpu | gpu | tpu | rest


def memory_table() -> str:
    """Returns the memory of whole models by optimizer."""
    measured = store.read_object(MEMORY)["measured"]
    rows = [
        [model, optimizer, *(f"{x / 1e9:.2f} GB" for x in sizes.values())]
        for model, by_optimizer in measured.items()
        for optimizer, sizes in by_optimizer.items()
    ]
    head = [*measured["8B (Llama 3)"]["AdamW"]]
    return markdown(["model", "optimizer", *head], rows, left=2)


def table(by_dtype: dict[str, ByName], times: Sequence[str] = ()) -> str:
    """Returns the measurements on one table.

    Args:
      by_dtype: the measurements.
      times: other optimizers, with which times are compared.
    """
    head = ["", "state"]
    for dtype in by_dtype:
        head += [f"{dtype}: bytes accessed", "alone", "temporaries"]
        head += [f"time / {other}" for other in times]
    rows = []
    for name in by_dtype["float32"]:
        cells = [name, f"{by_dtype['float32'][name]['state_bytes'] / 1e6:,.2f} MB"]
        for by_name in by_dtype.values():
            behind, alone = by_name[name]["clipped"], by_name[name]["alone"]
            cells += [f"{x[ACCESSED]:.2f}" for x in (behind, alone)]
            cells.append(f"{behind['temp_bytes'] / 1e6:,.1f} MB")
            cells += [f"{behind[f'over_{other.lower()}']:.2f}" for other in times]
        rows.append(cells)
    return markdown(head, rows, left=1)


def tpu_table(measured: dict[str, Any], table: str, dtype: str) -> str:
    """Returns bytes accessed and estimated time on one device of each family."""
    head = [""]
    for family in measured:
        head += [f"{family}: bytes accessed", "alone", "time / Adam"]
    rows = []
    for name in measured["v5p"][table][dtype]:
        cells = [name]
        for by_family in measured.values():
            by_name = by_family[table][dtype]
            m = by_name[name]
            ours, adams = (by_name[n]["clipped"]["seconds"] for n in (name, "Adam"))
            cells += [f"{m[how][ACCESSED]:.2f}" for how in ("clipped", "alone")]
            cells += [f"{ours / adams:.2f}" if ours and adams else "no estimate"]
        rows.append(cells)
    return markdown(head, rows, left=1)


def summary(
    cpu: dict[str, ByName], tpu: dict[str, Any], gpu: dict[str, dict[str, ByName]]
) -> str:
    """Returns the table of README.md: one step behind clipping, tables in float32."""
    on_tpu = tpu["v5p"]["50304x768"]["float32"]
    on_gpu = gpu["50304x768"]["float32"]
    head = [
        "optimizer of the table",
        "its state",
        "TPU v5p: bytes accessed",
        "estimated time",
    ]
    head += ["H100: bytes accessed", "temporaries"]
    head += [f"2 CPU cores: time, {dtype}" for dtype in DTYPES]
    rows = []
    for name in ("SGD", "Ember", "Lion", "Adam", "Adafactor"):
        behind = on_tpu[name]["clipped"]
        cells = [name, f"{cpu['float32'][name]['state_bytes'] / 1e6:.2f} MB"]
        cells += [f"{behind[ACCESSED]:.2f} tables"]
        cells += [f"{behind['seconds'] / on_tpu['Adam']['clipped']['seconds']:.2f}"]
        behind = on_gpu[name]["clipped"]
        cells += [f"{behind[ACCESSED]:.2f} tables"]
        cells += [f"{behind['temp_bytes'] / 1e6:.1f} MB"]
        times = [cpu[dtype][name]["clipped"]["over_adam"] for dtype in DTYPES]
        rows.append([*cells, *(f"{time:.2f}" for time in times)])
    return markdown(head, rows, left=1)


def decoder_table(of_models: dict[str, dict[str, ByName]]) -> str:
    """Returns the costs of a whole training step by the optimizer of its tables."""
    head = ["model", "on", "tables", "state of the tables", "peak memory"]
    head += ["bytes accessed", "of which tables", "estimated time"]
    rows = []
    for model, by_slice in of_models.items():
        for name, by_optimizer in by_slice.items():
            for optimizer, m in by_optimizer.items():
                sgd = by_optimizer["sgd"]
                cells = [model, name, NAMES[optimizer]]
                cells += [f"{m['state_bytes'] / 1e6:,.2f} MB"]
                cells += [f"{m['peak_bytes'] / 1e9:.2f} GB"]
                if m["bytes"]:
                    share = m["table_bytes"] / m["bytes"]
                    cells += [f"{m['bytes'] / 1e9:,.1f} GB", f"{share:.1%}"]
                else:
                    cells += ["no count", ""]
                if m["seconds"]:
                    more = m["seconds"] / sgd["seconds"] - 1
                    cells += [f"{1e3 * m['seconds']:,.1f} ms ({more:+.1%})"]
                else:
                    cells += ["no estimate"]
                rows.append(cells)
    return markdown(head, rows, left=3)


def draw() -> None:
    """Draws peak memory of a whole step by the optimizer of its tables."""
    on_one = store.read_object(DECODER)["measured"]["12 x 768"]
    on_one |= store.read_object(DECODER_GPU)["measured"]["12 x 768"]
    figure, panels = plt.subplots(
        1, len(on_one), figsize=(10, 2.2), sharex=True, sharey=True, layout="tight"
    )
    colors = {"ember": EMBER, "adam": ADAM}
    for axes, (name, by_optimizer) in zip(panels, on_one.items(), strict=True):
        for y, (optimizer, m) in enumerate(by_optimizer.items()):
            more = (m["peak_bytes"] - by_optimizer["sgd"]["peak_bytes"]) / 1e6
            axes.barh(y, more, color=colors.get(optimizer, OTHER))
            axes.text(max(more, 0), y, f" {more:,.1f} MB", va="center", fontsize=7)
        axes.set_yticks(range(len(NAMES)), NAMES.values())
        axes.set_title(name.partition(":")[0])
        axes.margins(x=0.35)
    panels[0].invert_yaxis()
    figure.supxlabel("peak memory of a training step, above that with SGD", fontsize=9)
    save(figure, DECODER.with_suffix(".png"))
