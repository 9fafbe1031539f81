"""Rules that scale the best learning rates of the main setting to other settings."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.common.search import Pair
from benchmarks.study.settings import Settings
from examples.lm.optimizer import POWERS


class Rule(NamedTuple):
    """Powers of a relative width and of relative tokens in a step, for both tables."""

    width: Pair
    tokens: Pair  # in a step

    def scale(self, pair: Pair, run: Settings) -> Pair:
        """Scales the rates of embedding and head from the main setting to a run's."""
        width, tokens = relative_size(run)
        embed, head = (
            rate * width**a * tokens**b
            for rate, a, b in zip(pair, self.width, self.tokens, strict=True)
        )
        return embed, head


THEORY = Rule(width=(0.0, -1.0), tokens=(0.0, 0.0))
ROOT = Rule(width=(-0.5, -0.5), tokens=(0.5, 0.5))
ADVISED = Rule(width=(POWERS["embed"], POWERS["head"]), tokens=(0.0, 0.0))


def relative_size(run: Settings) -> Pair:
    """Returns width and tokens in a step, relative to the main setting."""
    tokens = run.batch * run.window
    return run.width / Settings.width, tokens / (Settings.batch * Settings.window)


def fit(sizes: Sequence[float], pairs: Sequence[Pair]) -> Pair:
    """Returns the powers of the size that fit pairs of rates, rounded to quarters."""
    embed, head = np.polyfit(np.log(sizes), np.log(pairs), 1)[0]
    return round(4 * embed) / 4, round(4 * head) / 4
