"""A task with an answer that can be checked: sums, answered by the number alone."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

QUESTION = "Add {a} and {b}. Answer with the number only."
PATTERN = re.compile(r"Add (\d+) and (\d+)\.")


def questions(rng: np.random.Generator, n: int, largest: int) -> list[str]:
    """Draws questions about numbers up to `largest`."""
    pairs = rng.integers(1, largest, size=(n, 2), endpoint=True)
    return [QUESTION.format(a=a, b=b) for a, b in pairs]


def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """Rewards answers: 1 for the right number alone, 0.5 with other text around it.

    A number alone that is wrong gets 0.2, everything else nothing.
    """
    return [
        _reward(prompt, answer)
        for prompt, answer in zip(prompts, completions, strict=True)
    ]


def _reward(prompt: str, answer: str) -> float:
    # The last question of a prompt, which a template may have surrounded.
    a, b = PATTERN.findall(str(prompt))[-1]
    right, answer = str(int(a) + int(b)), answer.strip()
    if answer == right:
        return 1.0
    if right in re.findall(r"\d+", answer):
        return 0.5
    return 0.2 if answer.isdigit() else 0.0
