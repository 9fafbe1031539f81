"""The claims of the paper, and what the study found."""

from collections import Counter

from benchmarks.common import store
from benchmarks.common.intervals import MARGIN, Interval
from benchmarks.geometry import report as geometry
from benchmarks.post_training import report as post_training
from benchmarks.study import shared
from benchmarks.study.families import CANDIDATE, ELSEWHERE, Family, families
from benchmarks.study.rows import Row, Study, difference

VERDICTS = {
    "better": "reproduced at this scale",
    "no worse": "reproduced at this scale",
    "worse": "not reproduced",
    "undecided": "undecided",
}
STAGE = "`python -m benchmarks.study.run {} --results=mine.jsonl`"
EVERYWHERE = STAGE.format(" ".join(["arms", *ELSEWHERE]))


def claims(study: Study) -> list[list[str]]:
    """Returns a row for each claim: claim, finding, verdict, command."""
    found = families(study)
    return [
        pretraining(found["adam"]),
        finetuning(),
        reinforcement(),
        state(study),
        scaling(found["adam"], "batch"),
        scaling(found["adam"], "width"),
        larger(found["large"]),
        paths_of_tokens(),
        narrow(study, found["arms"]),
        decay(found["constant"]),
        mixed(study),
        same_as_factored(study),
        column_means(study),
    ]


def pretraining(family: Family) -> list[str]:
    claim = "matches or beats Adam in pretraining"
    return _of_family(claim, family, EVERYWHERE)


def decay(family: Family) -> list[str]:
    claim = "ours: Adafactor's decay is at least as good as b2 0.999"
    return _of_family(claim, family, EVERYWHERE)


def larger(family: Family) -> list[str]:
    claim = "ours: the same in a model eleven times larger"
    return _of_family(claim, family, STAGE.format("large"))


def _of_family(claim: str, family: Family, command: str) -> list[str]:
    """Counts verdicts and tells how large the differences are."""
    if len(family.finished) < family.n:
        return [claim, f"{len(family.finished)} of {family.n}", "not finished", command]
    means = sorted(c.difference.mean for c in family.finished)
    text = f"differences of {means[0]:+.3f} to {means[-1]:+.3f}, all in a table below"
    counts = Counter(c.difference.verdict for c in family.finished)
    listed = ", ".join(f"{v} in {counts[v]}" for v in VERDICTS if counts[v])
    good = counts["better"] + counts["no worse"]
    return [claim, text, f"holds in {good} of {family.n}: {listed}", command]


def scaling(family: Family, stage: str) -> list[str]:
    """Whether Ember keeps up with Adam at every size."""
    claim = {"batch": "scales with the batch size", "width": "scales with the width"}
    text = {
        getattr(c.candidate.settings, stage): c.difference
        for c in family.finished
        if c.candidate.name.startswith(stage)
        or (stage == "width" and c.candidate.name.startswith("arms"))
    }
    expected = len({"batch": range(4), "width": range(3)}[stage])
    found = ", ".join(f"{size}: {text[size]}" for size in sorted(text))
    verdict = _by_verdict(text) if len(text) == expected else "not finished"
    return [claim[stage], f"by {stage} {found}", verdict, STAGE.format(stage)]


def _by_verdict(found: dict[int, Interval]) -> str:
    sizes = {
        verdict: [str(size) for size in sorted(found) if found[size].verdict == verdict]
        for verdict in VERDICTS
    }
    return "; ".join(f"{k} at {', '.join(v)}" for k, v in sizes.items() if v)


def state(study: Study) -> list[str]:
    ember, adam = study.arm(CANDIDATE), study.arm("adam")
    claim, command = "kilobytes of state", STAGE.format("arms")
    if not (ember and adam):
        return [claim, "", "not finished", command]
    ratio = adam.state_bytes / ember.state_bytes
    found = f"{ember.state_bytes:,} bytes against {adam.state_bytes:,}: 1/{ratio:.0f}"
    return [claim, found, "reproduced", command]


def narrow(study: Study, family: Family) -> list[str]:
    """Which optimizers come within the margin of the candidate."""
    claim, command = "few optimizers are good enough", STAGE.format("arms mixed")
    # The other way round: whether the rival is worse than the candidate.
    groups: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for c in sorted(family.finished, key=lambda c: c.rival.mean):
        mean, low, high = c.difference
        groups[Interval(-mean, -high, -low).verdict].append(
            f"{c.rival.title} ({-mean:+.3f})"
        )
    text = " ".join(
        f"{k.capitalize()}: {', '.join(v)}." for k, v in groups.items() if v
    )
    text = f"Compared with Ember, Adafactor decay. {text}"
    if len(family.finished) < family.n:
        return [claim, text, "not finished", command]
    return [claim, text, f"{len(groups['worse'])} of {family.n} are worse", command]


def mixed(study: Study) -> list[str]:
    claim, command = "ours: Ember belongs on both tables", STAGE.format("mixed")
    rows, candidate = study.rows("mixed"), study.arm(CANDIDATE)
    if not (candidate and len(rows) == 2):
        return [claim, "", "not finished", command]
    found = [(row, difference(candidate, row, 2)) for row in rows]
    text = "; ".join(f"Ember on both minus {row.title}: {d}" for row, d in found)
    verdict = "; ".join(f"{d.verdict} than {row.title}" for row, d in found)
    return [
        claim,
        text,
        verdict.replace("undecided than", "undecided against"),
        command,
    ]


def same_as_factored(study: Study) -> list[str]:
    """Compares runs of the searches: same learning rates, same seed."""
    claim = "ours: Ember is `optax.scale_by_factored_rms` with a debiased decay"
    ember, optax = (
        shared.sweep({"arm": arm}, study.losses) for arm in ("ember", "factored_rms")
    )
    apart = [abs(ember[rate] - optax[rate]) for rate in ember if rate in optax]
    if not apart:
        return [claim, "", "not finished", STAGE.format("shared_sweep")]
    text = f"at {len(apart)} learning rates and with one seed, losses differ by at most"
    text += f" {max(apart):.4f}, because they round differently"
    verdict = "they agree" if max(apart) < MARGIN else "they differ"
    return [claim, text, verdict, STAGE.format("shared_sweep")]


def column_means(study: Study) -> list[str]:
    ember, active = (
        study.row("shared_seeds", {"arm": arm}) for arm in ("ember", "ember_active")
    )
    claim = "ours: columns over all rows are as good as over active rows"
    return [claim, *_against(ember, active), STAGE.format("shared_seeds")]


def finetuning() -> list[str]:
    """Ember against AdamW on the table of a real model."""
    claim = "matches or beats Adam in supervised finetuning"
    command = "`make bench-finetuning`"
    found = post_training.gap(store.read(post_training.RESULTS))
    if found is None:
        return [claim, "", "not finished", command]
    text = f"Ember minus AdamW (loss on answers): {found}"
    return [claim, text, VERDICTS[found.verdict], command]


def reinforcement() -> list[str]:
    claim = "matches or beats Adam in reinforcement learning"
    command = "`python -m examples.grpo --config=configs/grpo_accelerator.py --compare`"
    return [claim, "not measured on a real model", "undecided", command]


def paths_of_tokens() -> list[str]:
    runs = store.read(geometry.RESULTS)
    claim, command = "tokens move along a ray", "`python -m benchmarks.geometry.run`"
    return [claim, *geometry.evidence(runs), command]


def _against(row: Row | None, rival: Row | None) -> tuple[str, str]:
    if not (row and rival):
        return "", "not finished"
    found = difference(row, rival)
    text = f"{row.title} minus {rival.title}: {found}"
    return text, VERDICTS[found.verdict]
