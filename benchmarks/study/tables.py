"""The tables of docs/evidence.md: a row for each case of the study."""

import math

from benchmarks.common.tables import markdown
from benchmarks.study import stages
from benchmarks.study.arms import ARMS
from benchmarks.study.rows import Row, Study, difference, setting

SECTIONS = {
    "seeds": (
        "Optimizers of the tables",
        "Only the optimizer of the tables differs between rows. Model, data and"
        " schedule are the same, and the body uses AdamW. `factored RMS, debiased` is"
        " `optax.scale_by_factored_rms` with a decay that makes it Ember.",
    ),
    "b2": (
        "The decay b2 of Ember",
        "The first table has b2 0.999, and the same rule with Adafactor's decay"
        " 1 - t^-0.8.",
    ),
    "muon": ("Muon as the optimizer of the body", ""),
    "tables": (
        "One table at a time",
        "Ember on the input table (`embed`) or on the output table (`lm_head`), and"
        " Adam (b2 0.999) at its best learning rate on the other.",
    ),
    "tied": ("Tied input and output tables", ""),
    "batch": (
        "Batch size",
        "All rows see the same number of tokens, in windows of 16 instead of 64 tokens,"
        " so that a run with the largest batch still has 32 steps. 512 sequences are"
        " 8192 tokens here. The learning rate of the body scales with the square root"
        " of the tokens in a step.",
    ),
    "size": (
        "Width of the model",
        "All models have two layers and see the same number of tokens.",
    ),
    "length": (
        "Length of the run",
        "A quarter of the tokens of the main setting, and four times as many.",
    ),
    "scale": (
        "124 million parameters",
        "This setting has a vocabulary of 50,257, 131 million tokens and tied tables."
        " It needs a GPU and was not run for this page. `python -m"
        " benchmarks.study.run --help` shows the command.",
    ),
}


def table(study: Study, stage: str) -> str:
    rows = study.rows(stage)
    waiting = len(stages.CASES[stage]) - len(rows)
    if stage == "seeds":
        rows.sort(key=lambda row: row.mean)
    cells = [_cells(study, stage, row) for row in rows]
    head = ["tables", "setting", "lr", "loss", "minus Ember"]
    head += ["minus Adam, b2 0.999", "minus Adam, b2 0.95", "state, bytes", "name"]
    note = f"{waiting} rows of this table are not finished." if waiting else ""
    return "\n\n".join(x for x in (markdown(head, cells) if cells else "", note) if x)


def summary(study: Study) -> str:
    """Returns the table of README.md: all optimizers in the main setting."""
    ember, rows = study.arm("ember"), sorted(study.rows("seeds"), key=lambda r: r.mean)
    cells = [
        [row.title, _mean(row), _difference(row, ember), f"{row.state_bytes:,}"]
        for row in rows
    ]
    head = ["tables", "validation loss", "minus Ember", "state of the tables, bytes"]
    return markdown(head, cells, left=1)


def by_decay(study: Study) -> str:
    """Returns the table of what other decays change, by tokens in a step."""
    found: dict[tuple[int, int], dict[float | None, Row]] = {}
    for stage in ("seeds", "b2", "batch", "length"):
        for row in study.rows(stage):
            run = row.settings
            if run.arm in ("ember", "ember_growing"):
                key = run.batch * run.window, run.steps
                found.setdefault(key, {})[run.b2] = row
    cells = []
    for (tokens, steps), rows in sorted(found.items()):
        usual = rows.get(ARMS["ember"].b2)
        others = [rows.get(0.95), rows.get(None)]
        if usual and any(others):
            changes = [str(difference(row, usual)) if row else "" for row in others]
            cells.append([f"{tokens:,}", f"{steps:,}", *changes])
    head = [
        "tokens in a step",
        "steps",
        "b2 0.95 minus 0.999",
        "Adafactor decay minus 0.999",
    ]
    return markdown(head, cells, left=0)


def _cells(study: Study, stage: str, row: Row) -> list[str]:
    # Rows that only Ember has are compared with those of the main setting.
    alone = stage in ("b2", "tables")
    place = ("seeds", {}) if alone else (stage, row.case)
    changes = {k: v for k, v in place[1].items() if k not in ("arm", "b2")}
    arms = ("ember", "adam", "adam95")
    rivals = [study.row(place[0], {"arm": arm} | changes) for arm in arms]
    where = f"Ember on {row.settings.tables} only" if stage == "tables" else ""
    return [
        row.title,
        where or setting(row),
        f"{row.settings.lr:g}",
        _mean(row),
        *(_difference(row, rival) for rival in rivals),
        f"{row.state_bytes:,}",
        f"`{row.name}`",
    ]


def _mean(row: Row) -> str:
    if not math.isfinite(row.mean):
        return "diverged"
    return f"{row.mean:.3f} ± {row.deviation:.3f}"


def _difference(row: Row, rival: Row | None) -> str:
    if rival is None or rival.settings == row.settings:
        return ""
    return str(difference(row, rival))
