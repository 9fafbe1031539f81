"""The tables of docs/trainers.md."""

from pathlib import Path

from benchmarks.common import store
from benchmarks.common.store import Run
from benchmarks.common.tables import markdown

RESULTS = Path(__file__).with_name("results.jsonl")
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")
TITLES = {
    "nnx_loop": "your own loop, Flax NNX",
    "linen_loop": "your own loop, Flax linen",
    "maxtext": "MaxText",
    "levanter": "Levanter",
    "tunix": "tunix",
    "easydel": "EasyDeL",
    "kauldron": "Kauldron",
    "big_vision": "big_vision",
    "keras": "KerasHub on Keras 3",
    "torchax": "torchax",
}
SWITCHES = {
    "adamw": "keeps AdamW",
    "ember": "changes to Ember",
    "ember_fresh_rates": "changes to Ember, rates of a fresh run",
}
WATCH = {
    "nnx_loop": "`wrt=` decides what is trained",
    "linen_loop": "`optax.multi_transform` around it freezes parameters",
    "maxtext": "spike skipping and the trainable mask wrap Ember too",
    "levanter": "labels are per NamedArray; lower the rates after a change",
    "tunix": "it cannot resume a sharded model with any masked optimizer",
    "easydel": "set `weight_decay=0.0`: its default decays tables too",
    "kauldron": "replicate Ember's state with `sharding=`",
    "big_vision": "its last line fails with jax 0.9 and later, after all is saved",
    "keras": "`load_model` of KerasHub's models leaves the optimizer out",
    "torchax": "it cannot be imported with PyTorch 2.13 and later",
}


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    runs = store.read(RESULTS)
    return {
        "trainers.table": table(runs),
        "trainers.versions": versions(runs),
        "trainers.switch": switch(runs),
    }


def table(runs: list[Run]) -> str:
    """Lists the runs of each trainer."""
    rows = [
        [
            TITLES[run["trainer"]],
            run["version"],
            what_ran(run),
            f"{run['state_bytes']['adamw']:,}",
            f"{run['state_bytes']['ember']:,}",
            WATCH[run["trainer"]],
        ]
        for run in runs
    ]
    head = ["trainer", "version", "what ran", "state, AdamW", "Ember", "watch for"]
    return markdown(head, rows)


def what_ran(run: Run) -> str:
    ran = ["AdamW", "Ember", "bitwise identical restart", *run["also"]]
    if models := run.get("families"):
        ran.append(f"labels of {len(models['right'])} models")
        if only := models["with_vocab_size"]:
            ran.append(f"with `vocab_size` also of {', '.join(only)}")
    if "fails" in run:
        ran[2] += " (on one device)"
    return ", ".join(ran)


def versions(runs: list[Run]) -> str:
    """Lists the versions that each trainer ran with."""
    rows = [
        [
            TITLES[run["trainer"]],
            run["versions"]["python"],
            *(run["versions"].get(package, "") for package in PACKAGES),
        ]
        for run in runs
    ]
    return markdown(["trainer", "Python", *PACKAGES], rows)


def switch(runs: list[Run]) -> str:
    """Lists losses after the change and those of a run that keeps AdamW."""
    rows = [
        [TITLES[run["trainer"]], title, *(f"{x:.3f}" for x in run["switch"][key])]
        for run in runs
        if "switch" in run
        for key, title in SWITCHES.items()
        if key in run["switch"]
    ]
    n = max((len(row) - 2 for row in rows), default=0)
    rows = [row + [""] * (n + 2 - len(row)) for row in rows]
    head = ["trainer", "run", *(f"step {i}" for i in range(n))]
    return markdown(head, rows, left=2)
