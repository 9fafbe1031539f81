"""The claims of the paper and of this project, and the verdicts of the study."""

from collections import Counter
from collections.abc import Sequence

from benchmarks.common import store
from benchmarks.common.intervals import Interval
from benchmarks.geometry import report as geometry
from benchmarks.post_training import report as post_training
from benchmarks.study import practice, practice_report
from benchmarks.study.comparisons import (
    CANDIDATE,
    Comparison,
    Study,
    difference,
    planned,
)

VERDICTS = ("better", "non-inferior", "undecided", "worse")
HELD = {"better", "non-inferior"}


def claims(study: Study) -> list[list[str]]:
    """Returns a row for each claim: claim, finding, verdict."""
    found = planned(study)
    runs = store.read(geometry.RESULTS)
    decay = "ours: Adafactor's decay is at least as good as b2 0.999"
    return [
        ["matches or beats Adam in pretraining", *counted(found["adam"])],
        ["matches or beats Adam in supervised finetuning", *post_training.claim()],
        [
            "matches or beats Adam in reinforcement learning",
            "not measured on a real model",
            "undecided",
        ],
        ["the same in a model as people build it", *practice_report.claim(study)],
        ["the same in longer runs", *practice_report.claim_of_length(study)],
        state(study),
        scaling(found["adam"], "batch"),
        scaling(found["adam"], "width"),
        ["tokens move along a ray", *geometry.evidence(runs)],
        narrow(found["arms"]),
        ["ours: the same at eleven times the size", *counted(found["large"])],
        [decay, *counted(found["constant"])],
        ["the same in longer runs", *practice_report.claim_of_length(study, ["ember"])],
        [
            "ours: a cap of 0.999 costs nothing in long runs",
            *practice_report.claim_of_length(study, [practice.UNCAPPED]),
        ],
        mixed(study),
    ]


def counted(family: Sequence[Comparison]) -> tuple[str, str]:
    """Returns the range of the differences of a family and the number per verdict."""
    means = sorted(c.difference.mean for c in family)
    counts = Counter(c.difference.verdict for c in family)
    listed = [f"{verdict} in {n}" for verdict in VERDICTS if (n := counts[verdict])]
    held = sum(counts[verdict] for verdict in HELD)
    return (
        f"differences of {means[0]:+.3f} to {means[-1]:+.3f}",
        f"holds in {held} of {len(family)}: {', '.join(listed)}",
    )


def state(study: Study) -> list[str]:
    ember, adam = study.arm(CANDIDATE).state_bytes, study.arm("adam").state_bytes
    finding = f"{ember:,} bytes, Adam {adam:,}: 1/{adam / ember:.0f}"
    return ["kilobytes of state", finding, "holds"]


def scaling(family: Sequence[Comparison], name: str) -> list[str]:
    """Compares Ember with Adam at every batch size, or at every width."""
    stages = (name, "arms") if name == "width" else (name,)
    found = {
        getattr(c.candidate.settings, name): c.difference
        for c in family
        if c.candidate.name.startswith(stages)
    }
    finding = ", ".join(f"{size}: {found[size]}" for size in sorted(found))
    sizes = {
        verdict: [str(size) for size in sorted(found) if found[size].verdict == verdict]
        for verdict in VERDICTS
    }
    verdict = "; ".join(f"{k} at {', '.join(v)}" for k, v in sizes.items() if v)
    claim = f"scales with the {'batch size' if name == 'batch' else name}"
    return [claim, finding, verdict]


def narrow(family: Sequence[Comparison]) -> list[str]:
    """Groups the other optimizers by their verdict against the candidate."""
    groups: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for c in sorted(family, key=lambda c: c.rival.mean):
        mean, low, high = c.difference
        groups[Interval(-mean, -high, -low).verdict].append(c.rival.title)
    finding = " ".join(
        f"{verdict.capitalize()}: {', '.join(titles)}."
        for verdict, titles in groups.items()
        if titles
    )
    return [
        "few optimizers are good enough",
        f"Compared with Ember, Adafactor decay. {finding}",
        f"{len(groups['worse'])} of {len(family)} are worse",
    ]


def mixed(study: Study) -> list[str]:
    """Compares Ember on both tables with Ember on one and Adam on the other."""
    candidate, rows = study.arm(CANDIDATE), study.rows("mixed")
    gaps = {row.title: difference(candidate, row, len(rows)) for row in rows}
    finding = "; ".join(f"minus {title}: {gap}" for title, gap in gaps.items())
    verdict = "; ".join(f"{gap.verdict}: {title}" for title, gap in gaps.items())
    claim = "ours: Ember belongs on both tables"
    return [claim, finding, verdict]
