"""Tasks and English for the runs, as tokens."""

import functools
import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.post_training import chats, tasks
from examples.post_training.chats import ChatTokenizer, Messages

LENGTH, ANSWER = 40, 16  # tokens of a conversation, and of its answer, at most
DEBIAN = Path(".cache/debian")
# The model's own template adds a system message of 22 tokens, which costs time only.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Batch(NamedTuple):
    """Sequences, and the places whose next token has a loss."""

    tokens: np.ndarray  # int32[batch, time]
    places: np.ndarray  # int32[batch, n]
    real: np.ndarray  # bool[batch, n], False for padding

    def part(self, start: int, size: int) -> "Batch":
        return Batch(*(x[start : start + size] for x in self))


def load(
    directory: Path, task: str, seed: int, train: int, held_out: int
) -> tuple[Batch, Batch]:
    """Loads the first conversations of a task that fit: to train on, and held-out."""
    tokenizer = ChatTokenizer.load(directory)
    short = ChatTokenizer(tokenizer.tokenizer, TEMPLATE, tokenizer.special_tokens)
    sides = {"signatures": tasks.signatures, "definitions": definitions}[task](seed)
    sizes = (train, held_out)
    first, second = (encode(short, x, n) for x, n in zip(sides, sizes, strict=True))
    return first, second


def encode(tokenizer: ChatTokenizer, found: Sequence[Messages], n: int) -> Batch:
    """Encodes the first `n` conversations that fit."""
    rows = []
    for messages in found:
        tokens, has_loss = chats.encode(tokenizer, messages)
        if len(tokens) > LENGTH or has_loss.sum() > ANSWER:
            continue
        pad = LENGTH - len(tokens)
        places = np.flatnonzero(has_loss) - 1
        missing = ANSWER - len(places)
        rows.append(
            (
                np.pad(tokens, (0, pad), constant_values=tokenizer.pad_id()),
                np.pad(places, (0, missing)),
                np.arange(ANSWER) < len(places),
            )
        )
        if len(rows) == n:
            break
    return Batch(*map(np.array, zip(*rows, strict=True)))


@functools.cache
def definitions(seed: int) -> tuple[list[Messages], list[Messages]]:
    """Definitions of WordNet's words: the first sense, without examples."""
    file = DEBIAN / "usr/share/dictd/wn.dict.dz"
    text = gzip.decompress(file.read_bytes()).decode()
    pairs = [*_definitions(text)]
    held_out = [pair for n, pair in enumerate(pairs) if n % 8 == 0]
    train = [pair for n, pair in enumerate(pairs) if n % 8]
    return tasks.shuffled(train, held_out, seed)


def _definitions(text: str) -> Iterator[tuple[str, str]]:
    entry = re.compile(r"^([a-z]+)\n +(?:n|v|adj|adv)(?: 1)?: (.*(?:\n {5,}.*)*)", re.M)
    for match in entry.finditer(text):
        word, senses = match.groups()
        first = re.split(r"\n +2: ", senses)[0]
        gloss = re.split(r'; "| \[', " ".join(first.split()))[0]
        yield f"Define the word {word}.", gloss


def english(directory: Path, rows: int = 8, length: int = 128) -> Batch:
    """Loads prose of Debian's FAQ, all of whose tokens but the first have a loss."""
    file = DEBIAN / "usr/share/doc/debian/FAQ/debian-faq.en.txt.gz"
    text = tasks.prose(gzip.decompress(file.read_bytes()).decode())
    ids = ChatTokenizer.load(directory).encode(text)[: rows * length]
    tokens = np.array(ids, np.int32).reshape(rows, length)
    places = np.tile(np.arange(length - 1), (rows, 1))
    return Batch(tokens, places, np.ones(places.shape, bool))
