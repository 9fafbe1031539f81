"""Tables of docs/post_training.md, and all tables next to the results."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import store
from benchmarks.common.intervals import difference
from benchmarks.common.store import Run, Settings
from benchmarks.common.tables import markdown
from benchmarks.post_training.plan import (
    ADAFACTOR,
    ADAMW,
    ARMS,
    EMBER,
    FROZEN,
    RESULTS,
    SEEDS,
    TASKS,
    plan,
)

GRPO = Path(__file__).with_name("grpo.json")
ORDER = ("before", "frozen", "adamw", "ember")
MISSING = "Not measured yet: run `make bench-finetuning`."


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    runs = store.read(RESULTS)
    return {
        "post_training.rule": cost(runs),
        "post_training.signatures": arms(runs, "signatures"),
        "post_training.definitions": arms(runs, "definitions"),
        "post_training.seeds": seeds(runs),
        "post_training.others": others(runs),
        "post_training.new_tokens": new_tokens(runs),
        "post_training.grpo": reinforcement(),
        "post_training.missing": missing(runs),
    }


def reinforcement() -> str:
    """Makes the table of rewards in `make grpo`."""
    rows = []
    for name, run in store.read_object(GRPO)["measured"].items():
        quarter = max(1, len(run["rewards"]) // 4)
        first, last = run["rewards"][:quarter], run["rewards"][-quarter:]
        rewards = (
            statistics.fmean(first),
            statistics.fmean(last),
            run["held_out_before"],
            run["held_out"],
        )
        title = name.replace("_", ", seed ")
        rows.append([title, *(f"{x:.3f}" for x in rewards), f"{run['seconds']:.0f} s"])
    head = ["table", "reward of the first steps", "of the last", "held out, before"]
    return markdown([*head, "after", "time"], rows, left=1)


def cost(runs: list[Run]) -> str:
    """Makes the table of losses above those of a frozen table, by rate and task."""
    titles, rows = [], []
    for task in TASKS:
        for title, arm in ARMS.items():
            if arm is not FROZEN and arm is not ADAFACTOR:
                titles.append((task, title, arm))
    for times in (0.3, 1, 3, 10, 30, 100):
        cells = []
        for task, _, arm in titles:
            rate = float(f"{times * arm['head_rate']:.1g}")
            found, frozen = (
                next((r for r in runs if r["settings"] == settings), None)
                for settings in (
                    arm | {"task": task, "head_rate": rate},
                    FROZEN | {"task": task},
                )
            )
            if found is None or frozen is None:
                cells.append("")
                continue
            gaps = (found[key] - frozen[key] for key in ("loss", "english"))
            cells.append(", ".join(f"{gap:+.3f}" for gap in gaps))
        if any(cells):
            rows.append([f"{times:g} times the body's", *cells])
    head = ["rate of the table", *(f"{task}: {title}" for task, title, _ in titles)]
    return markdown(head, rows, left=1)


def arms(runs: list[Run], task: str) -> str:
    """Makes the table of all optimizers and rates on a task, otherwise as planned."""
    fixed = {k: FROZEN[k] for k in ("seed", "steps", "tied", "body_rate")} | {
        "task": task
    }

    def belongs(s: Settings) -> bool:
        is_before = s["tables"] == "before" and s["task"] == task
        return is_before or (
            _has(s, fixed) and s.get("eps", EMBER["eps"]) == EMBER["eps"]
        )

    return _table((run for run in runs if belongs(run["settings"])), (name, rate))


def others(runs: list[Run]) -> str:
    """Makes the table of the runs that change one thing more."""

    def belongs(s: Settings) -> bool:
        return s.get("steps") == FROZEN["steps"] and (
            s["body_rate"] != FROZEN["body_rate"]
            or s.get("eps", EMBER["eps"]) != EMBER["eps"]
            or not s["tied"]
        )

    columns = (body_rate, name, eps, rate)
    return _table((run for run in runs if belongs(run["settings"])), columns)


def seeds(runs: list[Run]) -> str:
    """Makes the table of the best arms over seeds."""
    rows = []
    for arm in (FROZEN, ADAMW, EMBER):
        found = _by_seed(runs, arm)
        if len(found) < len(SEEDS):
            return MISSING
        english = ", ".join(f"{run['english']:.3f}" for run in found)
        losses = ", ".join(f"{run['loss']:.3f}" for run in found)
        rows.append([name(found[0]), rate(found[0]), losses, english])
    return markdown(["table", "rate", "loss on answers", "on English"], rows, left=2)


def claim() -> tuple[str, str]:
    """Returns the loss of Ember minus AdamW's at its rate, and the verdict."""
    runs = store.read(RESULTS)
    ember, adamw = (
        [run["loss"] for run in _by_seed(runs, arm)] for arm in (EMBER, ADAMW)
    )
    complete = len(ember) == len(adamw) == len(SEEDS)
    if not complete:
        return "not finished", "undecided"
    gap = difference(ember, adamw)
    return f"Ember minus AdamW (loss on answers): {gap}", gap.verdict


def _by_seed(runs: list[Run], arm: Settings) -> list[Run]:
    wanted = [arm | {"seed": seed} for seed in SEEDS]
    return [run for settings in wanted for run in runs if run["settings"] == settings]


def new_tokens(runs: list[Run]) -> str:
    """Makes the table of ten new rows, learned alone."""
    rows = [
        [
            name(r),
            f"{r['settings']['head_rate']:g}",
            f"{r['loss_before']:.2f}",
            f"{r['loss']:.2f}",
            f"{r['english'] - r['english_before']:+.4f}",
            f"{r['old_rows_changed']:,}",
        ]
        for r in runs
        if r["settings"]["task"] == "new tokens"
    ]
    head = ["table", "rate", "loss before", "after", "English", "old rows that moved"]
    return markdown(head, rows, left=1) if rows else MISSING


def missing(runs: list[Run]) -> str:
    """Lists the planned runs that are not on file."""
    done = [run["settings"] for run in runs]
    left = [settings for settings in plan() if settings not in done]
    if not left:
        return "All planned runs are on file."
    return f"{len(left)} planned runs are not on file yet:\n\n" + "\n".join(
        f"- {_describe(s)}" for s in left
    )


def _describe(s: Settings) -> str:
    """Names a run by what differs from the main setting."""
    words = [s["task"], name({"settings": s}), rate({"settings": s})]
    if s.get("body_rate", 1e-4) != 1e-4:
        words.append(f"body {s['body_rate']:g}")
    if s.get("eps", 1e-8) != 1e-8:
        words.append(f"eps {s['eps']:g}")
    if s.get("seed"):
        words.append(f"seed {s['seed']}")
    if not s.get("tied", True):
        words.append("two tables")
    return ", ".join(filter(None, words))


def _table(runs: Iterable[Run], columns: tuple[Callable[[Run], str], ...]) -> str:
    found = sorted(
        runs, key=lambda run: (ORDER.index(run["settings"]["tables"]), *_key(run))
    )
    rows = [[*(column(run) for column in columns), *_results(run)] for run in found]
    titles: dict[Any, str] = {name: "table", rate: "its rate", eps: "eps"}
    titles[body_rate] = "body's rate"
    head = [titles[column] for column in columns]
    head += ["rate / RMS", "loss on answers", "on English", "largest step of a row"]
    return markdown(head, rows, left=len(columns)) if rows else MISSING


def _key(run: Run) -> tuple:
    s = run["settings"]
    return (
        s.get("b2") is None,
        s.get("tied", True),
        s.get("body_rate", 0),
        s.get("eps", 0),
        s.get("embed_rate", 0),
        s.get("head_rate", 0),
    )


def _results(run: Run) -> list[str]:
    head_rate, rms = run["settings"].get("head_rate"), run.get("table_rms")
    step = run.get("largest_row_step")
    return [
        f"{head_rate / rms:.4f}" if head_rate and rms else "",
        f"{run['loss']:.3f}",
        f"{run['english']:.3f}",
        f"{step:.2%}" if step else "",
    ]


def name(run: Run) -> str:
    s = run["settings"]
    if s["tables"] == "ember":
        decay = "Adafactor decay" if s.get("b2", 1) is None else "b2 0.999"
        return f"Ember, {decay}"
    return {"adamw": "AdamW", "frozen": "frozen", "before": "before finetuning"}[
        s["tables"]
    ]


def rate(run: Run) -> str:
    s = run["settings"]
    if "head_rate" not in s:
        return ""
    pair = [s[role] for role in ("embed_rate", "head_rate") if s.get(role)]
    return " and ".join(f"{x:g}" for x in pair)


def eps(run: Run) -> str:
    return f"{run['settings'].get('eps', ''):}"


def body_rate(run: Run) -> str:
    return f"{run['settings']['body_rate']:g}"


def _has(settings: Settings, wanted: Settings) -> bool:
    return all(settings.get(key) == value for key, value in wanted.items())
