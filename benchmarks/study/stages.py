"""Which runs the study consists of, some of which depend on the results of others.

A case is what a run differs in from the others. Each case is tuned first, by a search
for the learning rates of its two tables with one seed, and then run at the best pair
with seeds that the search has not seen. PLAN.md says why these cases.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from benchmarks.common.search import QUARTERS, Pair, best_pair, search_pair
from benchmarks.study import shared
from benchmarks.study.arms import ARMS
from benchmarks.study.settings import Losses, Settings
from benchmarks.study.shared import BATCHES, LENGTHS, SEEDS, WIDTHS, Case

RIVALS = ("ember_adafactor", "adam80", "adam", "ember")
LARGE: Case = {"width": 256, "layers": 4, "vocab": 16_384, "tokens": 1_048_576}
# For one large GPU.
SCALE: Case = {
    "config": "pretrain_124m",
    "width": 768,
    "layers": 12,
    "batch": 16,
    "window": 1024,
    "tokens": 8_388_608,
}
SCALE_BODY_LR = 1e-3  # of AdamW, a usual one for models of this size
FEW_SEEDS = (1, 2, 3)  # where a run takes long
# Factors by which the best pair is missed: on the embedding, on the head, on both.
OFF = (0.25, 0.5, 2.0, 4.0)
# Learning rates 10^(k/4) of embedding and of head, a factor of 3.2 apart.
PLANE = (range(-7, 4, 2), range(-12, -1, 2))
MEASURED = ("ember_adafactor", "ember", "adam95", "adam", "amsgrad")

CASES: dict[str, list[Case]] = {
    "arms": [
        *({"arm": arm} for arm in RIVALS),
        {"arm": "adam95"},
        {"arm": "adam80_995", "head_arm": "adam80_96"},
        {"arm": "adam_adafactor"},
        {"arm": "amsgrad"},
        {"arm": "adafactor"},
        {"arm": "row_only"},
        {"arm": "sm3"},
        {"arm": "muon"},
        *({"arm": arm} for arm in ARMS if arm.startswith("balanced")),
        {"arm": "ember_adafactor", "head_arm": "ember_centered"},
    ],
    "mixed": [
        {"arm": embed, "head_arm": head}
        for embed, head in itertools.permutations(RIVALS[:2])
    ],
    "linux": [{"arm": arm, "text": "linux"} for arm in RIVALS],
    "tied": [{"arm": arm, "tied": True} for arm in RIVALS],
    "muon": [{"arm": arm, "body": "muon"} for arm in RIVALS],
    # Short windows, so that the largest batch still makes 32 steps.
    "batch": [
        {"arm": arm, "batch": batch, "window": 16}
        for batch, arm in itertools.product(BATCHES, RIVALS)
    ],
    "width": [
        {"arm": arm, "width": width} for width, arm in itertools.product(WIDTHS, RIVALS)
    ],
    "length": [
        {"arm": arm, "tokens": tokens}
        for tokens, arm in itertools.product(LENGTHS, RIVALS)
    ],
    "decay": [{"arm": arm, "weight_decay": 0.1} for arm in RIVALS[:2]],
    "rare": [{"arm": arm, "frequencies": True} for arm in MEASURED],
    "rounding": [
        {"arm": RIVALS[0], "rounding": rounding, **longest}
        for longest in ({}, {"tokens": LENGTHS[-1]})
        for rounding in ("nearest", "stochastic")
    ],
    "large": [LARGE | {"arm": arm} for arm in RIVALS[:3]],
    "scale": [
        SCALE | {"arm": "ember_adafactor"},
        SCALE | {"arm": "adam80"},
        SCALE | {"arm": "adam80_995", "head_arm": "adam80_96"},
    ],
}
STAGES = (*CASES, "plane", "off")
ON_CPU = tuple(stage for stage in STAGES if stage != "scale")


def name_of(stage: str, case: Case) -> str:
    """Returns the name of a row of the evidence, such as `batch/ember/8/16`."""
    return "/".join(map(str, (stage, *case.values())))


def missing(stage: str, losses: Losses) -> Iterator[Settings]:
    """Returns the runs of a stage that can be done now and are not finished."""
    jobs: list[Callable[[], list[Settings]]]
    if stage == "plane":
        jobs = [lambda: plane(losses)]
    elif stage == "off":
        jobs = [lambda arm=arm: list(off(arm, losses).values()) for arm in RIVALS[:2]]
    else:
        jobs = [lambda case=case: seeded(case, losses) for case in CASES[stage]]
    return shared.unfinished(jobs, losses)


def seeded(case: Case, losses: Losses) -> list[Settings]:
    """Returns the runs of a case at its best learning rates.

    Raises:
      WaitingFor: they are not known yet.
    """
    best = tuned(case, losses)
    seeds = FEW_SEEDS if is_larger(case) else SEEDS
    return [dataclasses.replace(best, seed=seed) for seed in seeds]


def tuned(case: Case, losses: Losses) -> Settings:
    """Returns a case at its best learning rates, with the seed of the search.

    Raises:
      WaitingFor: they are not known yet.
    """
    base = start(case, losses)
    if "tied" in case:
        _, center = rates(tuned(main(case), losses))
        return shared.best_of(base, center, 1, losses)
    if "frequencies" in case:
        lr, head_lr = rates(tuned(main(case), losses))
    elif "rounding" in case:
        in_float32 = {key: x for key, x in case.items() if key != "rounding"}
        lr, head_lr = rates(tuned(in_float32, losses))
    elif is_larger(case):
        scale = math.sqrt(Settings.width / base.width)
        lr, head_lr = (scale * x for x in rates(tuned(main(case), losses)))
    else:
        lr, head_lr = best_pair(searched(case, losses))
    return dataclasses.replace(base, lr=lr, head_lr=head_lr)


def searched(case: Case, losses: Losses) -> dict[Pair, float]:
    """Returns the losses of the search of a case, by learning rates of its tables.

    Raises:
      WaitingFor: the search is not finished.
    """
    base = start(case, losses)

    def losses_at(pairs: Sequence[Pair]) -> list[float]:
        runs = [dataclasses.replace(base, lr=lr, head_lr=head) for lr, head in pairs]
        return [losses[run] for run in shared.require(runs, losses)]

    if case.keys() == {"arm"}:
        pair, strides = ARMS[case["arm"]].pair, (2, 1)
    elif case.keys() == {"arm", "head_arm"}:
        embed, head = case["arm"], case["head_arm"]
        pair, strides = (ARMS[embed].pair[0], ARMS[head].pair[1]), (2, 1)
    else:
        pair, strides = rates(tuned(main(case), losses)), (1,)
    return search_pair(losses_at, pair, QUARTERS, strides)


def start(case: Case, losses: Losses) -> Settings:
    """Returns the settings of a case but for its own learning rates."""
    body_lr = shared.best_body_rate(case.get("body", "adamw"), losses)
    run = Settings(lr=math.nan, b2=ARMS[case["arm"]].b2, body_lr=body_lr, **case)
    if run.config == SCALE["config"]:
        return dataclasses.replace(run, body_lr=SCALE_BODY_LR)
    # The usual rule for another number of tokens in a step.
    scale = math.sqrt(run.batch * run.window / (Settings.batch * Settings.window))
    return dataclasses.replace(run, body_lr=float(f"{body_lr * scale:.3g}"))


def is_larger(case: Case) -> bool:
    """Whether rates are those of the main setting by the rule of practice."""
    return case.keys() >= LARGE.keys() or case.keys() >= SCALE.keys()


def main(case: Case) -> Case:
    """Returns the case of the same optimizers in the main setting."""
    return {key: case[key] for key in ("arm", "head_arm") if key in case}


def rates(run: Settings) -> Pair:
    assert run.head_lr is not None
    return run.lr, run.head_lr


def plane(losses: Losses) -> list[Settings]:
    """Returns the runs of a coarse grid of pairs, for Ember and for Adam."""
    pairs = itertools.product(*([QUARTERS.rate(k) for k in ks] for ks in PLANE))
    bases = [start({"arm": arm}, losses) for arm in RIVALS[:2]]
    return [
        dataclasses.replace(base, lr=lr, head_lr=head)
        for (lr, head), base in itertools.product(pairs, bases)
    ]


def off(arm: str, losses: Losses) -> dict[Pair, Settings]:
    """Returns the runs that miss the best pair of an arm, by the factors they are off.

    Raises:
      WaitingFor: the best pair is not known yet.
    """
    best = tuned({"arm": arm}, losses)
    lr, head_lr = rates(best)
    factors = [pair for x in OFF for pair in ((x, 1.0), (1.0, x), (x, x))]
    return {
        (embed, head): dataclasses.replace(best, lr=embed * lr, head_lr=head * head_lr)
        for embed, head in factors
    }
