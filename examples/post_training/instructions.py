"""Instruction data: a prompt and its answer, of which only the answer has a loss."""

import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from tokenizers import Tokenizer

from examples.lm.errors import UserError
from examples.lm.tokenizer import END_OF_TEXT
from examples.post_training.supervised import Batch


class Task(NamedTuple):
    prompt: str
    answer: str


def read_source() -> list[str]:
    """Returns the text of the standard library's modules."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [file.read_text("utf-8") for file in sorted(root.glob("*.py"))]


def split(items: list[Any]) -> tuple[list[Any], list[Any]]:
    """Returns shuffled items to train on, and a twentieth to validate on."""
    order = np.random.default_rng(0).permutation(len(items))
    n = max(1, round(0.05 * len(items)))
    return [items[i] for i in order[n:]], [items[i] for i in order[:n]]


def from_source(documents: list[str]) -> list[Task]:
    """Returns tasks from Python sources: the signature of a function by its docstring.

    Documents that this version of Python cannot parse have none.
    """
    return list(dict.fromkeys(task for text in documents for task in _signatures(text)))


def read(path: str) -> list[Task]:
    """Returns the tasks of a JSON Lines file with the fields "prompt" and "completion".

    Raises:
      UserError: a line is not such an object, or there are no two of them.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
        objects = [json.loads(line) for line in lines if line.strip()]
        tasks = [Task(str(x["prompt"]), str(x["completion"])) for x in objects]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not JSON Lines with prompt and completion: {error!r}"
        ) from error
    if len(tasks) < 2:
        raise UserError(
            f"{path} holds {len(tasks)} tasks, but at least 2 are needed: one to train"
            " on and one to validate on."
        )
    return tasks


def encode(tokenizer: Tokenizer, tasks: list[Task], length: int) -> Batch:
    """Returns the tasks that fit into `length` tokens, padded, as one large batch.

    Raises:
      UserError: none of them fits.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    prompts = tokenizer.encode_batch_fast([task.prompt for task in tasks])
    answers = tokenizer.encode_batch_fast([task.answer for task in tasks])
    pairs = [(p.ids, [*a.ids, end]) for p, a in zip(prompts, answers, strict=True)]
    pairs = [(p, a) for p, a in pairs if len(p) + len(a) <= length]
    if not pairs:
        raise UserError(
            f"None of {len(tasks)} tasks fits into sequence_length, which is {length}"
            " tokens: raise it."
        )
    tokens = np.full((len(pairs), length), end, np.int32)
    mask = np.zeros((len(pairs), length), bool)
    for row, (prompt, answer) in enumerate(pairs):
        stop = len(prompt) + len(answer)
        tokens[row, :stop] = prompt + answer
        mask[row, len(prompt) : stop] = True
    return Batch(tokens, mask)


def some(tokenizer: Tokenizer, tasks: Batch, n: int) -> list[Task]:
    """Returns at most `n` of the tasks with a prompt as text, from all over them."""
    rows = np.flatnonzero(~tasks.mask[:, 0])
    places = np.linspace(0, max(0, len(rows) - 1), min(n, len(rows))).astype(int)
    found = []
    for row in rows[places]:
        tokens, mask = tasks.tokens[row], tasks.mask[row]
        start, stop = mask.argmax(), mask.argmax() + mask.sum() - 1  # without the end
        texts = tokens[:start], tokens[start:stop]
        found.append(Task(*(tokenizer.decode(text.tolist()) for text in texts)))
    return found


def batches(tasks: Batch, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yields batches of tasks without end; every epoch has another order."""
    order = grain.MapDataset.range(len(tasks.tokens)).seed(seed)
    for rows in order.shuffle().repeat().batch(batch_size, drop_remainder=True):
        yield Batch(tasks.tokens[rows], tasks.mask[rows])


def _signatures(text: str) -> Iterator[Task]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (ast.get_docstring(node) or "").splitlines()
            if lines and lines[0].strip():
                answer = f"def {node.name}({ast.unparse(node.args)}):"
                yield Task(f"# {lines[0].strip()}\n", answer)
