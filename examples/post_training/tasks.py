"""Tasks that need no download: signatures, sums, and English to measure forgetting."""

import ast
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.post_training.chats import Messages, chat

NOT_LIBRARY = {"test", "tests", "site-packages", "dist-packages", "lib2to3"}
SUM = "Add {a} and {b}. Answer with the number only."


def signatures(seed: int = 0) -> tuple[list[Messages], list[Messages]]:
    """Signatures of the standard library's functions, asked for by their docstrings.

    Returns:
      Conversations to train on and held-out ones, from other files, in random order.
    """
    train, held_out = [], []
    root = Path(sysconfig.get_paths()["stdlib"])
    for n, file in enumerate(sorted(root.rglob("*.py"))):
        if not NOT_LIBRARY & set(file.parts):
            (train if n % 8 else held_out).extend(_signatures(file))
    return shuffled(train, held_out, seed)


def _signatures(file: Path) -> Iterator[tuple[str, str]]:
    try:
        nodes = ast.walk(ast.parse(file.read_text()))
    except (SyntaxError, UnicodeDecodeError):  # templates and test data
        return
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            summary = (ast.get_docstring(node) or "").partition("\n")[0].strip()
            if summary:
                yield summary, f"def {node.name}({ast.unparse(node.args)}):"


def shuffled(
    train: list[tuple[str, str]], held_out: list[tuple[str, str]], seed: int
) -> tuple[list[Messages], list[Messages]]:
    """Shuffles pairs, the held-out ones in the same way for all seeds.

    Drops duplicates, and held-out pairs that are also trained on.
    """
    known = set(train)

    def mixed(pairs: list[tuple[str, str]], seed: int) -> list[Messages]:
        pairs = list(dict.fromkeys(pairs))
        order = np.random.default_rng(seed).permutation(len(pairs))
        return [chat(*pairs[i]) for i in order]

    return mixed(train, seed), mixed([x for x in held_out if x not in known], 0)


def python_prose() -> str:
    """Returns the prose of Python's reference manual."""
    from pydoc_data import topics

    return prose("\n\n".join(topics.topics.values()))


def prose(text: str) -> str:
    """Returns the paragraphs of a text that are prose, without its line breaks."""
    paragraphs = (" ".join(p.split()) for p in text.split("\n\n"))
    return "\n\n".join(
        p
        for p in dict.fromkeys(paragraphs)
        if len(p) > 250
        and "://" not in p
        and sum(c.isalpha() or c == " " for c in p) > 0.93 * len(p)
    )


def sums(rng: np.random.Generator, n: int, largest: int) -> list[str]:
    """Draws questions for the sum of two numbers up to `largest`."""
    pairs = rng.integers(1, largest, size=(n, 2), endpoint=True)
    return [SUM.format(a=a, b=b) for a, b in pairs]


def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """Rewards answers: 1 for the right number alone, 0.5 with other text around it.

    A wrong number alone gets 0.2, everything else nothing.
    """
    rewards = []
    for prompt, completion in zip(prompts, completions, strict=True):
        # The template may write examples in front of the question.
        a, b = re.findall(r"Add (\d+) and (\d+)\.", str(prompt))[-1]
        right, answer = str(int(a) + int(b)), completion.strip()
        if answer == right:
            rewards.append(1.0)
        elif right in re.findall(r"\d+", answer):
            rewards.append(0.5)
        else:
            rewards.append(0.2 if answer.isdigit() else 0.0)
    return rewards
