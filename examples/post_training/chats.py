"""Conversations as tokens, by the chat template of a model."""

# pyright: reportMissingImports=false

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tqdm
from tokenizers import Tokenizer

from examples.post_training.errors import UserError

Messages = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer with its chat template, also as tunix expects one."""

    tokenizer: Tokenizer
    template: str
    special_tokens: dict[str, str]  # such as "eos_token", which templates may name

    @classmethod
    def load(cls, directory: Path) -> "ChatTokenizer":
        """Loads `tokenizer.json`, and the template from where models have it."""
        config = json.loads((directory / "tokenizer_config.json").read_text())
        file = directory / "chat_template.jinja"
        template = file.read_text() if file.exists() else config.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = {t["name"]: t["template"] for t in template}.get("default")
        if not template:
            raise UserError(
                f"{directory} has no chat template, neither in chat_template.jinja nor"
                " in tokenizer_config.json: take an instruction-tuned model, or write"
                " one."
            )
        special = {
            name: token["content"] if isinstance(token, dict) else token
            for name, token in config.items()
            if name.endswith("_token") and token
        }
        if "eos_token" not in special:
            raise UserError(f"{directory}/tokenizer_config.json names no eos_token.")
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        return cls(tokenizer, template, special)

    def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        try:
            return self._compiled.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except jinja2.TemplateError as error:
            raise UserError(f"The chat template refuses {messages}: {error}") from error

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        # A template comes with a model from anywhere: it runs in a sandbox.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.globals["raise_exception"] = _raise
        return environment.from_string(self.template)

    def prompt(self, question: str) -> str:
        """Renders a question that the model is to answer."""
        return self.render([{"role": "user", "content": question}], True)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids))

    def eos_id(self) -> int:
        return self.tokenizer.token_to_id(self.special_tokens["eos_token"])

    def pad_id(self) -> int:
        """Returns a token that no prompt has.

        tunix's sampler takes every such token for padding. Many models pad with their
        end token, which chat templates write after each message.
        """
        pad = self.special_tokens.get("pad_token", "")
        if pad and pad not in self.template and pad != self.special_tokens["eos_token"]:
            return self.tokenizer.token_to_id(pad)
        added = self.tokenizer.get_added_tokens_decoder().items()
        used = self.special_tokens["eos_token"], self.special_tokens.get("bos_token")
        return next(
            i
            for i, token in sorted(added)
            if token.content not in used and token.content not in self.template
        )

    def bos_id(self) -> None:
        """Returns None: the template writes this token where it belongs."""


class Example(NamedTuple):
    """One conversation."""

    tokens: np.ndarray  # int32[n]
    has_loss: np.ndarray  # bool[n], of the assistant's tokens


def read(path: Path) -> list[Messages]:
    """Reads conversations from JSON Lines or Parquet.

    Each record has `messages`, or `prompt` and `completion`: both texts, or both lists
    of messages.

    Raises:
      UserError: a record has neither, or there is no record. It names the record.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet

        records = enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)
    else:
        lines = enumerate(path.read_text().splitlines(), start=1)
        records = ((n, _parse(path, n, line)) for n, line in lines if line.strip())
    found = [_messages(record, f"{path}:{n}") for n, record in records]
    if not found:
        raise UserError(f"{path} is empty: give it one conversation per line.")
    return found


def _parse(path: Path, n: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{n} is not JSON: {error}.") from error


def _messages(record: Any, place: str) -> Messages:
    if isinstance(record, dict):
        prompt, completion = record.get("prompt"), record.get("completion")
        if isinstance(prompt, str) and isinstance(completion, str):
            return [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": completion},
            ]
        messages = record.get("messages")
        if isinstance(prompt, list) and isinstance(completion, list):
            messages = prompt + completion
        if isinstance(messages, list) and all(map(_is_message, messages)):
            return messages
    raise UserError(
        f'{place} has neither "messages", a list of {{"role": ..., "content": ...}},'
        ' nor "prompt" and "completion".'
    )


def _is_message(x: Any) -> bool:
    return isinstance(x, dict) and all(
        isinstance(x.get(key), str) for key in ("role", "content")
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def encode(tokenizer: ChatTokenizer, messages: Messages) -> Example:
    """Encodes a conversation; each message of the assistant has a loss, to its end.

    A prompt and an answer are encoded apart, as when the model answers.

    Raises:
      UserError: the template writes an earlier message in another way once there is a
        later one, as some do with reasoning.
    """
    tokens, has_loss, done = [], [], ""

    def add(text: str, loss: bool) -> None:
        ids = tokenizer.encode(text)
        tokens.extend(ids)
        has_loss.extend([loss] * len(ids))

    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.render(messages[:i], add_generation_prompt=True)
        after = tokenizer.render(messages[: i + 1])
        if not (before.startswith(done) and after.startswith(before)):
            raise UserError(
                "The chat template changes earlier messages of a conversation with"
                " several turns: give one answer to a record."
            )
        add(before[len(done) :], False)
        answer = after[len(before) :]
        end = len(answer.rstrip())  # white space after the end token is the template's
        add(answer[:end], True)
        done = after[: len(before) + end]
    return Example(np.array(tokens, np.int32), np.array(has_loss, bool))


class Encoded(NamedTuple):
    """Conversations that fit, and the number of those that do not."""

    examples: list[Example]
    too_long: int
    no_answer: int

    def __str__(self) -> str:
        text = f"{len(self.examples):,} conversations"
        if self.too_long:
            text += f", {self.too_long:,} left out as too long"
        if self.no_answer:
            text += f", {self.no_answer:,} left out without an answer"
        return text


def encode_all(
    tokenizer: ChatTokenizer, conversations: Sequence[Messages], length: int
) -> Encoded:
    """Encodes conversations of at most `length` tokens.

    Raises:
      UserError: none fits.
    """
    found, too_long, no_answer = [], 0, 0
    for messages in tqdm.tqdm(conversations, "Encoding", leave=False, disable=None):
        example = encode(tokenizer, messages)
        if not example.has_loss.any():
            no_answer += 1
        elif len(example.tokens) > length:
            too_long += 1
        else:
            found.append(example)
    if not found:
        raise UserError(
            f"Of {len(conversations)} conversations none has an answer and at most"
            f" {length} tokens: raise --config.sequence_length."
        )
    return Encoded(found, too_long, no_answer)


class Batch(NamedTuple):
    """Rows of one or more conversations, padded at their end."""

    tokens: np.ndarray  # int32[rows, length]
    has_loss: np.ndarray  # bool[rows, length]
    segments: np.ndarray  # int32[rows, length], from 1; 0 is padding


OPEN_ROWS = 32  # that a conversation may still go into


def pack(examples: Iterable[Example], length: int) -> Iterator[Batch]:
    """Packs conversations into single rows, each where it fits first.

    Attention does not look across segments.
    """
    rows: list[list[Example]] = []
    for example in examples:
        n = len(example.tokens)
        room = (row for row in rows if sum(len(e.tokens) for e in row) + n <= length)
        row = next(room, None)
        if row is None:
            if len(rows) == OPEN_ROWS:
                yield _join(rows.pop(0), length)
            row = []
            rows.append(row)
        row.append(example)
    for row in rows:
        yield _join(row, length)


def _join(row: list[Example], length: int) -> Batch:
    batch = Batch(*(np.zeros((1, length), t) for t in (np.int32, bool, np.int32)))
    start = 0
    for segment, example in enumerate(row, start=1):
        place = 0, slice(start, start := start + len(example.tokens))
        batch.tokens[place], batch.has_loss[place] = example
        batch.segments[place] = segment
    return batch
