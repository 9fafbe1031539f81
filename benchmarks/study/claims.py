"""The claims of the paper, and what the study found."""

import math

from benchmarks.common import store
from benchmarks.common.intervals import MARGIN, Interval
from benchmarks.common.intervals import difference as paired
from benchmarks.geometry import report as geometry
from benchmarks.post_training.comparison import FINETUNE, GRPO, Benchmark, on_file
from benchmarks.study import stages
from benchmarks.study.arms import ARMS
from benchmarks.study.rows import Row, Study, difference, title

VERDICTS = {
    "better": "reproduced at this scale",
    "no worse": "reproduced at this scale",
    "worse": "not reproduced",
    "undecided": "undecided",
}
STAGE = "`python -m benchmarks.study.run {} --results=mine.jsonl`"


def claims(study: Study) -> list[list[str]]:
    """Returns a row for each claim: claim, finding, verdict, command."""
    return [
        pretraining(study),
        post_trained("matches or beats Adam in supervised finetuning", FINETUNE),
        post_trained("matches or beats Adam in reinforcement learning", GRPO),
        state(study),
        scaling(study, "batch", "scales with the batch size"),
        scaling(study, "size", "scales with the number of parameters"),
        paths_of_tokens(),
        narrow(study),
        same_as_factored(study),
        column_means(study),
    ]


def pretraining(study: Study) -> list[str]:
    """The same b2 for both, and the better of two values of b2 for each."""
    claim, command = "matches or beats Adam in pretraining", STAGE.format("seeds b2")
    embers = [study.arm("ember"), study.row("b2", {"arm": "ember", "b2": 0.95})]
    adams = [study.arm("adam"), study.arm("adam95")]
    if not (all(embers) and all(adams)):
        return [claim, "", "not finished", command]
    ember, adam = (
        min((row for row in rows if row), key=lambda row: row.mean)
        for rows in (embers, adams)
    )
    pairs = {
        "with b2 0.999 for both": (embers[0], adams[0]),
        "with the better b2 of 0.95 and 0.999 for each": (ember, adam),
    }
    found = {name: _against(*pair) for name, pair in pairs.items()}
    text = "; ".join(text for text, _ in found.values())
    verdict = "; ".join(f"{verdict} {name}" for name, (_, verdict) in found.items())
    return [claim, text, verdict, command]


def scaling(study: Study, stage: str, claim: str) -> list[str]:
    """Whether Ember keeps up with Adam at every size."""
    key = {"batch": "batch", "size": "width"}[stage]
    pairs = list(study.against_adam(stage, *(["seeds"] if stage == "size" else [])))
    expected = 2 * len(stages.BATCHES if stage == "batch" else stages.WIDTHS)
    if len(pairs) < expected:
        return [claim, "", "not finished", STAGE.format(stage)]
    pairs.sort(key=lambda pair: getattr(pair[0].settings, key))
    texts, verdicts, kinds = [], [], set()
    for arm in ("adam", "adam95"):
        found = {
            getattr(ember.settings, key): difference(ember, adam)
            for ember, adam in pairs
            if adam.settings.arm == arm
        }
        name = title(arm, ARMS[arm].b2)
        texts.append(
            f"Ember minus {name} at {key} "
            + ", ".join(f"{size}: {d}" for size, d in found.items())
        )
        verdicts.append(f"against {name} {_by_verdict(found)}")
        kinds |= {VERDICTS[d.verdict] for d in found.values()}
    overall = kinds.pop() if len(kinds) == 1 else "mixed"
    verdict = "; ".join([overall, *verdicts, "not tested at scale"])
    return [claim, "; ".join(texts), verdict, STAGE.format(stage)]


def _by_verdict(found: dict[int, Interval]) -> str:
    sizes = {
        verdict: [str(size) for size, d in found.items() if d.verdict == verdict]
        for verdict in VERDICTS
    }
    return ", ".join(f"{k} at {', '.join(v)}" for k, v in sizes.items() if v)


def state(study: Study) -> list[str]:
    ember, adam = study.arm("ember"), study.arm("adam")
    claim = "kilobytes of state"
    if not (ember and adam):
        return [claim, "", "not finished", STAGE.format("seeds")]
    ratio = adam.state_bytes / ember.state_bytes
    found = f"{ember.state_bytes:,} bytes against {adam.state_bytes:,}: 1/{ratio:.0f}"
    return [claim, found, "reproduced", STAGE.format("seeds")]


def narrow(study: Study) -> list[str]:
    """Which optimizers come within the margin of the best."""
    rows = sorted(study.rows("seeds"), key=lambda row: row.mean)
    claim = "few optimizers are good enough"
    if len(rows) < len(stages.ARM_CASES):
        return [
            claim,
            f"{len(rows)} arms finished",
            "not finished",
            STAGE.format("seeds"),
        ]
    best, groups = rows[0], {"no worse": [], "undecided": [], "worse": []}
    for row in rows[1:]:
        found = difference(row, best)
        verdict = "worse" if math.isnan(found.mean) else found.verdict
        groups[verdict].append(f"{row.title} ({found.mean:+.3f})")
    text = f"Best: {best.title}. No worse: {_listed(groups['no worse'])}."
    text += f" Undecided: {_listed(groups['undecided'])}."
    text += f" Worse: {_listed(groups['worse'])}."
    verdict = f"{len(groups['worse'])} of {len(rows)} are worse than the best"
    return [claim, text, verdict, STAGE.format("seeds")]


def same_as_factored(study: Study) -> list[str]:
    """Compares runs of the searches: same learning rates, same seed."""
    claim = "ours: Ember is `optax.scale_by_factored_rms` with a debiased decay"
    ember, optax = (
        stages.sweep({"arm": arm}, study.losses) for arm in ("ember", "factored_rms")
    )
    apart = [abs(ember[rate] - optax[rate]) for rate in ember if rate in optax]
    if not apart:
        return [claim, "", "not finished", STAGE.format("sweep")]
    text = f"at {len(apart)} learning rates and with one seed, losses differ by at most"
    text += f" {max(apart):.4f}, because they round differently"
    verdict = "they agree" if max(apart) < MARGIN else "they differ"
    return [claim, text, verdict, STAGE.format("sweep")]


def column_means(study: Study) -> list[str]:
    ember, active = study.arm("ember"), study.arm("ember_active")
    claim = "ours: columns over all rows are as good as over active rows"
    return [claim, *_against(ember, active), STAGE.format("seeds")]


def post_trained(claim: str, benchmark: Benchmark) -> list[str]:
    """Ember against AdamW after pretraining, in each case."""
    arms = on_file(benchmark).arms
    texts, verdicts = [], []
    for ember, adam in zip(arms[::2], arms[1::2], strict=True):
        losses = ([*map(benchmark.loss, arm.repeated)] for arm in (ember, adam))
        found = paired(*losses)
        prompts = ember.case.get("batch_size")
        where = f" with {prompts} prompts a step" if prompts else ""
        texts.append(f"{found}{where}")
        verdicts.append(VERDICTS[found.verdict] + where)
    measure = "reward, negated" if benchmark is GRPO else "loss on answers"
    text = f"Ember minus AdamW ({measure}): " + "; ".join(texts)
    command = f"`python -m benchmarks.post_training.run {benchmark.name}`"
    return [claim, text, "; ".join(verdicts), command]


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


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
