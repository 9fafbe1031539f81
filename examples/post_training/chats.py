"""Conversations as tokens, by the chat template of a model."""

# pyright: reportMissingImports=false

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tqdm
from tokenizers import Tokenizer

from examples.lm.errors import UserError

Messages = list[dict[str, str]]


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds one object, such as config.json."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold a JSON object.")
    return found


@dataclasses.dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer with its chat template, also as tunix expects one."""

    tokenizer: Tokenizer
    template: str
    special_tokens: dict[str, str]  # such as "eos_token", which templates may name

    @classmethod
    def load(cls, directory: Path) -> "ChatTokenizer":
        config = read_object(directory / "tokenizer_config.json")
        file = directory / "chat_template.jinja"
        template = file.read_text() if file.exists() else config.get("chat_template")
        if not isinstance(template, str):
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
        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # tokenizers raises no class of its own
            raise UserError(f"{directory}/tokenizer.json: {error}.") from error
        return cls(tokenizer, template, special)

    def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        try:
            return self._compiled.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            shown = f"{messages!s:.200}"
            raise UserError(f"The chat template refuses {shown}: {error}") from error

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        # Sandboxed: a template is a program that comes with a downloaded model.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.globals["raise_exception"] = _raise
        return environment.from_string(self.template)

    def prompt(self, question: str) -> str:
        return self.render([{"role": "user", "content": question}], True)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids))

    def eos_id(self) -> int:
        return self._id(self.special_tokens["eos_token"])

    def pad_id(self) -> int:
        """Returns a token that no prompt has.

        tunix's sampler treats every such token as padding. Many models pad with their
        end token, which chat templates write after each message.
        """
        special = self.special_tokens
        added = sorted(self.tokenizer.get_added_tokens_decoder().items())
        candidates = [special.get("pad_token", ""), *(t.content for _, t in added)]
        used = "", special["eos_token"], special.get("bos_token")
        for token in candidates:
            if token not in used and token not in self.template:
                return self._id(token)
        raise UserError("tokenizer.json has no special token that is free for padding.")

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise UserError(f"tokenizer.json does not have the token {token!r}.")
        return found

    def bos_id(self) -> None:
        """Returns None: the template writes this token where it belongs."""


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def read(path: Path) -> list[Messages]:
    """Reads conversations from JSON Lines or Parquet.

    Each record has `messages`, or `prompt` and `completion`: both texts, or both lists
    of messages.
    """
    found = [_messages(record, f"{path}:{n}") for n, record in _records(path)]
    if not found:
        raise UserError(f"{path} is empty: give it one conversation per line.")
    return found


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    n = 0
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)
            return
        with path.open(encoding="utf-8") as file:
            for n, line in enumerate(file, start=1):
                if line.strip():
                    yield n, json.loads(line)
    except ValueError as error:  # of JSON, UTF-8 and Parquet
        raise UserError(f"{path}:{n} cannot be read: {error}.") from error


def _messages(record: Any, place: str) -> Messages:
    messages: list[Any] = [None]
    match record:
        case {"prompt": str(prompt), "completion": str(completion)}:
            return chat(prompt, completion)
        case {"prompt": list(prompt), "completion": list(completion)}:
            messages = prompt + completion
        case {"messages": list(found)}:
            messages = found
    if all(map(_is_message, messages)):
        return messages
    raise UserError(
        f'{place} has neither "messages", a list of {{"role": ..., "content": ...}},'
        ' nor "prompt" and "completion".'
    )


def _is_message(x: Any) -> bool:
    keys = ("role", "content")
    return isinstance(x, dict) and all(isinstance(x.get(key), str) for key in keys)


def chat(question: str, answer: str) -> Messages:
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


class Example(NamedTuple):
    """One conversation."""

    tokens: np.ndarray  # int32[n]
    has_loss: np.ndarray  # bool[n], true for the assistant's tokens


def encode(tokenizer: ChatTokenizer, messages: Messages) -> Example:
    """Encodes a conversation; each message of the assistant has a loss, to its end.

    A prompt and an answer are encoded apart, as when the model answers.

    Raises:
      UserError: the template writes an earlier message in another way once there is a
        later one, as some do with reasoning.
    """
    tokens, has_loss, done = [], [], ""
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
        # The template writes white space after the end token, the model does not.
        answer = after[len(before) :].rstrip()
        for text, loss in ((before[len(done) :], False), (answer, True)):
            ids = tokenizer.encode(text)
            tokens += ids
            has_loss += [loss] * len(ids)
        done = before + answer
    return Example(np.array(tokens, np.int32), np.array(has_loss, bool))


def encode_all(
    tokenizer: ChatTokenizer, conversations: Sequence[Messages], length: int
) -> tuple[list[Example], str]:
    """Encodes conversations of at most `length` tokens; counts the others."""
    found, too_long, no_answer = [], 0, 0
    for messages in tqdm.tqdm(conversations, "Encoding", leave=False, disable=None):
        example = encode(tokenizer, messages)
        if not example.has_loss.any():
            no_answer += 1
        elif len(example.tokens) > length:
            too_long += 1
        else:
            found.append(example)
    counts = (
        f"{too_long:,} are longer than {length} tokens, {no_answer:,} have no answer"
    )
    if not found:
        raise UserError(
            f"None of {len(conversations):,} conversations can be used: {counts}. Raise"
            " --config.sequence_length, or give each an answer of the assistant."
        )
    return found, f"{len(found):,} conversations ({counts})"


class Batch(NamedTuple):
    """Rows of one or more conversations, padded at their end."""

    tokens: np.ndarray  # int32[rows, length]
    has_loss: np.ndarray  # bool[rows, length]
    segments: np.ndarray  # int32[rows, length], from 1; 0 is padding


OPEN_ROWS = 32  # that a conversation may still go into


def pack(examples: Iterable[Example], length: int) -> Iterator[Batch]:
    """Packs conversations into single rows, each where it fits first."""
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
