"""The tables of the first study, with one learning rate for both tables."""

from benchmarks.common.tables import markdown
from benchmarks.study import shared, stages
from benchmarks.study.rows import Row, Study, setting
from benchmarks.study.tables import mean, minus

SECTIONS = {
    "shared_seeds": (
        "Optimizers of the tables",
        "Only the optimizer of the tables differs between rows. Model, data and"
        " schedule are the same, and the body uses AdamW. `factored RMS, debiased` is"
        " `optax.scale_by_factored_rms` with a decay that makes it Ember.",
    ),
    "shared_b2": (
        "The decay b2 of Ember",
        "The first table has b2 0.999, and the same rule with Adafactor's decay"
        " 1 - t^-0.8.",
    ),
    "shared_muon": ("Muon as the optimizer of the body", ""),
    "shared_tables": (
        "One table at a time",
        "Ember on the input table (`embed`) or on the output table (`lm_head`), and"
        " Adam (b2 0.999) at its best learning rate on the other.",
    ),
    "shared_tied": ("Tied input and output tables", ""),
    "shared_batch": (
        "Batch size",
        "All rows see the same number of tokens, in windows of 16 instead of 64 tokens,"
        " so that a run with the largest batch still has 32 steps. 512 sequences are"
        " 8192 tokens here. The learning rate of the body scales with the square root"
        " of the tokens in a step.",
    ),
    "shared_size": (
        "Width of the model",
        "All models have two layers and see the same number of tokens.",
    ),
    "shared_length": (
        "Length of the run",
        "A quarter of the tokens of the main setting, and four times as many.",
    ),
}


def cost(study: Study) -> str:
    """Returns the table of what one learning rate for both tables costs."""
    pairs = [
        (study.row("shared_seeds", {"arm": arm}), study.arm(arm))
        for arm in shared.COMPARED
        if {"arm": arm} in stages.CASES["arms"]
    ]
    cells = [
        [one.title, mean(one), mean(two), minus(one, two)]
        for one, two in pairs
        if one and two
    ]
    return markdown(["tables", "one rate", "a rate for each", "cost"], cells, left=1)


def table(study: Study, stage: str) -> str:
    rows = study.rows(stage)
    waiting = len(shared.CASES[stage]) - len(rows)
    if stage == "shared_seeds":
        rows.sort(key=lambda row: row.mean)
    cells = [_cells(study, stage, row) for row in rows]
    head = ["tables", "setting", "lr", "loss", "minus Ember"]
    head += ["minus Adam, b2 0.999", "minus Adam, b2 0.95", "state, bytes", "name"]
    note = f"{waiting} rows of this table are not finished." if waiting else ""
    return "\n\n".join(x for x in (markdown(head, cells) if cells else "", note) if x)


def _cells(study: Study, stage: str, row: Row) -> list[str]:
    # Rows that only Ember has are compared with those of the main setting.
    alone = stage in ("shared_b2", "shared_tables")
    place = ("shared_seeds", {}) if alone else (stage, row.case)
    changes = {k: v for k, v in place[1].items() if k not in ("arm", "b2")}
    arms = ("ember", "adam", "adam95")
    rivals = [study.row(place[0], {"arm": arm} | changes) for arm in arms]
    where = f"Ember on {row.settings.tables} only" if stage == "shared_tables" else ""
    return [
        row.title,
        where or setting(row.settings),
        f"{row.settings.lr:g}",
        mean(row),
        *(minus(row, rival) for rival in rivals),
        f"{row.state_bytes:,}",
        f"`{row.name}`",
    ]
