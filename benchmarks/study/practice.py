"""The runs of the second plan, PLAN_PRACTICE.md: a model as people build it today.

Embedding N(0, 1) with RMSNorm behind it, head of zeros. Each case is tuned by a search
over the rates of both tables with seed 0, and runs at its best pair with other seeds.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from statistics import fmean

from benchmarks.common.search import Pair, best_pair, index_of, rate_at, search_pair
from benchmarks.study import scaling
from benchmarks.study.settings import Losses, Settings
from benchmarks.study.stages import (
    BODY_RATES,
    FEW_SEEDS,
    SEEDS,
    Case,
    best_body_rate_of,
    losses_by_pair,
    main,
    rates,
    require,
    tuned_rate,
)
from examples.lm.optimizer import POWERS

EMBER, ADAM80, ADAM = ARMS = "ember_adafactor", "adam80", "adam"
PAIR = EMBER, ADAM80
NANOCHAT: Case = {"arm": "adam80_995", "head_arm": "adam80_96"}
START: dict[str, Pair] = {
    EMBER: (0.32, 0.032),
    "factored_rms": (0.32, 0.032),
    ADAM: (0.56, 0.032),
}
FIRST_PAIR = 1.0, 0.032  # of the other arms, which are Adams with b1 0.8
WIDTHS = (192, 384, 768)
VOCABULARIES = (16_384, 50_304)
BATCHES = (32, 64, 128, 256)  # sequences of 64 tokens; 256 only tests the rule
STEPS = (1024, 4096, 16_384)
UNCAPPED = "ember_uncapped"  # the same as EMBER before step 5,624
LONG = (EMBER, "ember", ADAM, ADAM80)
UP_TO_4096 = ("ember_cap99", "ember_9999")
EQUAL_TOKENS: list[Case] = [
    {"arm": arm, "batch": batch, "tokens": Settings.tokens}
    for batch, arm in itertools.product(BATCHES, PAIR)
]
EQUAL_STEPS: list[Case] = [
    case | {"tokens": case["batch"] * Settings.window * 256} for case in EQUAL_TOKENS
]

CASES: dict[str, list[Case]] = {
    "setting": [
        *({"arm": arm} for arm in (*ARMS, "factored_rms")),
        NANOCHAT,
        {"arm": EMBER, "weight_decay": 0.001},
        {"arm": EMBER, "weight_decay": 0.1, "cautious": True},
        *({"arm": arm, "qk_norm": True} for arm in ARMS),
    ],
    "width": [{"arm": a, "width": w} for w, a in itertools.product(WIDTHS, PAIR)],
    "batch": [*EQUAL_TOKENS, *EQUAL_STEPS],
    "length": [
        {"arm": arm, "text": "both", "track": True, "tokens": steps * 1024}
        for steps in STEPS
        for arm in (*LONG, *(UP_TO_4096 if steps <= 4096 else (UNCAPPED,)))
    ],
    # The longest run at the pair of the shortest: what the rule advises.
    "advised": [
        {"arm": EMBER, "text": "both", "track": True, "tokens": STEPS[-1] * 1024}
        | {"lr": 1.0, "head_lr": 0.032}
    ],
    "vocabulary": [
        {"arm": arm, "width": 192, "text": "linux", "track": True, "vocab": vocab}
        for vocab, arm in itertools.product(VOCABULARIES, ARMS)
    ],
    "tied": [
        {"arm": arm, "tied": True, "width": width}
        for width, arm in itertools.product((96, 192), PAIR)
    ],
    # Half and a quarter of the body's rate by the root rule, at the best pairs. Then
    # the fitted rate, with a search.
    "body": [
        *(
            {"arm": arm, "width": width, "lr": lr, "head_lr": head_lr, "body_lr": rate}
            for arm, width, lr, head_lr, rate in (
                (EMBER, 768, 1.0, 0.0056, 0.00071),
                (EMBER, 768, 1.0, 0.0056, 0.00035),
                (ADAM80, 768, 1.0, 0.0056, 0.00071),
                (EMBER, 384, 1.0, 0.01, 0.001),
                (EMBER, 384, 1.0, 0.01, 0.0005),
                (EMBER, 192, 0.32, 0.018, 0.00141),
                (EMBER, 192, 0.32, 0.018, 0.00071),
            )
        ),
        {"arm": EMBER, "width": 768, "body_lr": 0.0005},
    ],
}

SCALED = CASES["width"] + CASES["batch"]
FITTED = (
    [case for case in CASES["width"] if case["width"] != 384],
    [case for case in CASES["batch"] if case["batch"] != 256],
)
"""Where the powers of the width and of the tokens in a step are fitted."""

SCALE = Settings(
    arm=EMBER,
    lr=math.nan,
    body_lr=math.nan,
    batch=16,
    window=1024,
    tokens=20 * 2**20,
    width=768,
    layers=12,
    vocab=50_304,
    text="both",
    practice=True,
    accelerated=True,
)
"""169 million parameters, without a search of its own."""


def jobs(stage: str, losses: Losses) -> list[Callable[[], list[Settings]]]:
    """Returns functions that return the runs of a stage or raise `Unfinished`."""
    if stage == "scale":
        return [lambda: at_scale(losses)]
    if stage == "rule":
        return [lambda case=case: by_rules(case, losses) for case in SCALED]
    return [lambda case=case: seeded(case, losses) for case in CASES[stage]]


def seeded(case: Case, losses: Losses) -> list[Settings]:
    """Returns the runs of a case at its best pair."""
    best = tuned(case, losses)
    is_large = best.width > WIDTHS[0] or best.vocab == VOCABULARIES[-1]
    is_expensive = is_large or best.tokens > STEPS[0] * 1024
    seeds = FEW_SEEDS if is_expensive else SEEDS
    return [dataclasses.replace(best, seed=seed) for seed in seeds]


def tuned(case: Case, losses: Losses) -> Settings:
    """Returns a case at its best pair, with the seed of the search."""
    base = untuned(case, losses)
    if "lr" in case:
        return base
    if base.steps == STEPS[-1]:  # too long for a search
        ((lr, head_lr),) = starts_of(case, losses)
        return dataclasses.replace(base, lr=lr, head_lr=head_lr)
    if base.tied:
        head_lr = rates(tuned(main(case), losses))[1] * Settings.width / base.width
        return tuned_rate(base, rate_at(index_of(head_lr)), losses)
    lr, head_lr = best_pair(searched(case, losses))
    return dataclasses.replace(base, lr=lr, head_lr=head_lr)


def searched(case: Case, losses: Losses) -> dict[Pair, float]:
    """Returns the losses in the search of a case, by pair."""
    losses_at = losses_by_pair(untuned(case, losses), losses)
    if case == main(case):
        start = START.get(case["arm"], FIRST_PAIR)
        return search_pair(losses_at, snapped(start), strides=(2, 1))
    starts = [snapped(pair) for pair in starts_of(case, losses)]
    found = dict(zip(starts, losses_at(starts), strict=True))
    return found | search_pair(losses_at, best_pair(found), strides=(1,))


def starts_of(case: Case, losses: Losses) -> list[Pair]:
    """Returns the pairs where the search of a case begins.

    A longer run has the best pair of a quarter of its length, another rate of the body
    that of its width. Everything else has the pairs of two rules.
    """
    if case.get("tokens", 0) > STEPS[0] * 1024 and "track" in case:
        arm = EMBER if case["arm"] == UNCAPPED else case["arm"]
        quarter = case | {"arm": arm, "tokens": case["tokens"] // 4}
        return [rates(tuned(quarter, losses))]
    if "body_lr" in case:
        return [rates(tuned({"arm": case["arm"], "width": case["width"]}, losses))]
    best, run = rates(tuned(main(case), losses)), untuned(case, losses)
    starts = [rule.scale(best, run) for rule in (scaling.THEORY, scaling.ROOT)]
    return list(dict.fromkeys(starts))


def fitted(arm: str, losses: Losses) -> scaling.Rule:
    """Returns the rule that fits the best pairs of an arm in `FITTED`."""
    main_run = tuned({"arm": arm}, losses)
    powers = []
    for i, cases in enumerate(FITTED):
        runs = [tuned(case, losses) for case in cases if case["arm"] == arm]
        sizes = [scaling.relative_size(run)[i] for run in (main_run, *runs)]
        powers.append(scaling.fit(sizes, [rates(run) for run in (main_run, *runs)]))
    return scaling.Rule(*powers)


def fitted_body(losses: Losses) -> float:
    """Returns the power of the width that fits the best rates of Ember's body."""
    sizes, body_rates = [1.0], [best_body_rate(losses)]
    for width in WIDTHS:
        by_root: Case = {"arm": EMBER, "width": width}
        lower = [x for x in CASES["body"] if by_root.items() <= x.items() and "lr" in x]
        tried = [seeded(case, losses) for case in (by_root, *lower)]
        best, *_ = min(tried, key=lambda runs: fmean(require(runs, losses)))
        sizes.append(scaling.relative_size(best)[0])
        body_rates.append(best.body_lr)
    power, _ = scaling.fit(sizes, [(rate, rate) for rate in body_rates])
    return power


def by_rules(case: Case, losses: Losses) -> list[Settings]:
    """Returns a case at the pairs of the fitted and of the advised rule."""
    run, best = untuned(case, losses), rates(tuned(main(case), losses))
    rules = fitted(case["arm"], losses), scaling.ADVISED
    pairs = [snapped(rule.scale(best, run)) for rule in rules]
    return [dataclasses.replace(run, lr=lr, head_lr=head) for lr, head in pairs]


def at_scale(losses: Losses) -> list[Settings]:
    """Returns runs at the pairs of the rule, and Ember's at half and twice its pair."""
    relative_width, _ = scaling.relative_size(SCALE)
    body_lr = best_body_rate(losses) * relative_width ** POWERS["body"]
    runs = []
    for arm, factor in (*((arm, 1.0) for arm in ARMS), (EMBER, 0.5), (EMBER, 2.0)):
        best = rates(tuned({"arm": arm}, losses))
        lr, head_lr = (factor * rate for rate in scaling.ADVISED.scale(best, SCALE))
        pair = {"lr": lr, "head_lr": head_lr, "body_lr": body_lr}
        rounded = {name: float(f"{rate:.3g}") for name, rate in pair.items()}
        runs.append(dataclasses.replace(SCALE, arm=arm, **rounded))
    return runs


def snapped(pair: Pair) -> Pair:
    lr, head_lr = (rate_at(index_of(rate)) for rate in pair)
    return lr, head_lr


def untuned(case: Case, losses: Losses) -> Settings:
    """Returns the settings of a case, whose tables have rates only if it names them."""
    run = Settings(**{"lr": math.nan, "body_lr": math.nan, "practice": True} | case)
    if "body_lr" in case:
        return run
    # The usual rules for tokens in a step and for width; "body" tries lower rates.
    width, tokens = scaling.relative_size(run)
    body_lr = float(f"{best_body_rate(losses) * math.sqrt(tokens / width):.3g}")
    return dataclasses.replace(run, body_lr=body_lr)


def best_body_rate(losses: Losses) -> float:
    """Returns the body's rate that is best for Ember and Adam together."""
    runs = [
        Settings(
            arm=arm,
            practice=True,
            lr=START.get(arm, FIRST_PAIR)[0],
            head_lr=START.get(arm, FIRST_PAIR)[1],
            body_lr=rate,
        )
        for rate in BODY_RATES["adamw"]
        for arm in PAIR
    ]
    return best_body_rate_of(runs, losses)
