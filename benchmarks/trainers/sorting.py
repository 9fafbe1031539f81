"""A task for GRPO: to sort numbers. Each number is one token.

A prompt is "512 7 88 301 =" and its answer "7 88 301 512".
"""

import numpy as np

_SPECIAL = ["<pad>", "<eos>", "="]


class Tokenizer:
    """Numbers from 0 up and a few signs, between blanks, as tunix wants it."""

    def __init__(self, numbers: int):
        self._words = [*_SPECIAL, *map(str, range(numbers))]
        self._ids = {word: i for i, word in enumerate(self._words)}

    def __len__(self) -> int:
        return len(self._words)

    def encode(self, text: str) -> list[int]:
        return [self._ids[word] for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self._words[i] for i in ids)

    def pad_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return 1

    def bos_id(self) -> int:
        return 0  # which tunix takes for none


def prompts(rng: np.random.Generator, n: int, numbers: int, length: int) -> list[str]:
    """Returns `n` prompts of `length` numbers below `numbers`."""
    rows = rng.integers(numbers, size=(n, length)).tolist()
    return [" ".join(map(str, row)) + " =" for row in rows]


def answer(prompt: str) -> list[str]:
    """Returns the numbers of a prompt in order."""
    return sorted(prompt.split()[:-1], key=int)


def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """Returns for each completion the share of places that are right."""
    rewards = []
    for prompt, completion in zip(prompts, completions, strict=True):
        right, given = answer(prompt), completion.split()
        hits = sum(a == b for a, b in zip(right, given, strict=False))
        rewards.append(hits / len(right))
    return rewards
