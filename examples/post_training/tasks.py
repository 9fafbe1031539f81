"""Instructions and English in what every Python brings along."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from examples.post_training.chats import Messages

NOT_LIBRARY = {"test", "tests", "site-packages", "dist-packages", "lib2to3"}


def chat(question: str, answer: str) -> Messages:
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


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
            lines = (ast.get_docstring(node) or "").splitlines()
            if lines and lines[0].strip():
                answer = f"def {node.name}({ast.unparse(node.args)}):"
                yield lines[0].strip(), answer


def shuffled(
    train: list[tuple[str, str]], held_out: list[tuple[str, str]], seed: int
) -> tuple[list[Messages], list[Messages]]:
    """Shuffles pairs, the held-out ones in the same way for all seeds.

    Duplicates are dropped, and held-out pairs that are trained on too.
    """
    known = set(train)
    held_out = [pair for pair in held_out if pair not in known]

    def mixed(pairs: list[tuple[str, str]], seed: int) -> list[Messages]:
        pairs = list(dict.fromkeys(pairs))
        order = np.random.default_rng(seed).permutation(len(pairs))
        return [chat(*pairs[i]) for i in order]

    return mixed(train, seed), mixed(held_out, 0)


def python_prose() -> str:
    """Returns English: paragraphs of Python's reference manual."""
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
