"""Conversations as tokens: formats, the template, where the loss is, packing."""

import json

import numpy as np
import pytest

pytest.importorskip("jinja2")

from examples.lm.errors import UserError
from examples.post_training import chats, tasks
from examples.post_training.chats import ChatTokenizer, Example
from tests.examples.tiny_models import write_tokenizer

ASK = {"role": "user", "content": "Who?"}
TELL = {"role": "assistant", "content": "Me."}


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path / "model")
    return ChatTokenizer.load(tmp_path / "model")


def text(tokenizer, ids):
    return tokenizer.tokenizer.decode(ids, skip_special_tokens=False)


def test_only_the_assistants_tokens_have_a_loss(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, ASK, TELL, ASK, TELL]
    tokens, has_loss = chats.encode(tokenizer, messages)
    # The template's line break after the last end token is left out.
    assert text(tokenizer, tokens) == tokenizer.render(messages).rstrip()
    assert text(tokenizer, tokens[has_loss]) == "Me.<|end|>Me.<|end|>"
    assert not chats.encode(tokenizer, [ASK]).has_loss.any()


def test_padding_is_no_token_of_a_prompt(tokenizer):
    # tokenizer_config.json pads with the end token, which is in every prompt.
    assert tokenizer.pad_id() == tokenizer.tokenizer.token_to_id("<|pad|>")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "changes earlier messages",
        ),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('Roles must alternate.') }}", "Roles must alternate"),
        ("{% for %}", "refuses"),
        ("{{ 1 + 'a' }}", "refuses"),
    ],
)
def test_template_that_cannot_be_used_is_refused(tokenizer, template, message):
    other = ChatTokenizer(tokenizer.tokenizer, template, tokenizer.special_tokens)
    with pytest.raises(UserError, match=message):
        chats.encode(other, [ASK, TELL])


def test_template_file_comes_first(tmp_path, tokenizer):
    (tmp_path / "model/chat_template.jinja").write_text("{{ eos_token }}")
    assert ChatTokenizer.load(tmp_path / "model").render([]) == "<|end|>"


def test_formats_of_data(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    expected = [[ASK, TELL]] * 2
    records = [
        {"messages": [ASK, TELL]},
        {"prompt": "Who?", "completion": "Me."},
        {"prompt": [ASK], "completion": [TELL]},
    ]
    for record in records:
        lines = tmp_path / "data.jsonl"
        lines.write_text(f"{json.dumps(record)}\n\n{json.dumps(record)}\n")
        table = tmp_path / "data.parquet"
        parquet.write_table(Table.from_pylist([record] * 2), table)
        assert chats.read(lines) == chats.read(table) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"}', r'data.jsonl:1 has neither "messages"'),
        ('{"messages": [{"role": "user"}]}', "has neither"),
        ("\n{", "data.jsonl:2 cannot be read"),
        ("\n", "is empty"),
    ],
)
def test_bad_data_is_named(tmp_path, line, message):
    (tmp_path / "data.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        chats.read(tmp_path / "data.jsonl")


def test_bad_parquet_is_named(tmp_path):
    (tmp_path / "data.parquet").write_text("?")
    with pytest.raises(UserError, match=r"data\.parquet:0 cannot be read"):
        chats.read(tmp_path / "data.parquet")


def test_line_separator_inside_a_text(tmp_path):
    record = {"prompt": "Who?", "completion": "Me\u2028too."}
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(record, ensure_ascii=False), "utf-8")
    assert chats.read(file)[0][1]["content"] == "Me\u2028too."


def test_conversations_that_do_not_fit_are_counted(tokenizer):
    long = [ASK, {"role": "assistant", "content": "word " * 50}]
    _, counts = chats.encode_all(tokenizer, [long, [ASK, TELL], [ASK]], 64)
    assert counts == ("1 conversations (1 are longer than 64 tokens, 1 have no answer)")
    with pytest.raises(UserError, match=r"Raise --config\.sequence_length"):
        chats.encode_all(tokenizer, [long], 64)


def test_packing_keeps_every_token_once():
    rng = np.random.default_rng(0)
    examples = [
        Example(np.full(n, i, np.int32), np.arange(n) > 1)
        for i, n in enumerate(rng.integers(2, 12, size=20))
    ]
    rows = [*chats.pack(examples, 16)]
    assert len(rows) < 12
    for row in rows:
        for segment in range(1, row.segments.max() + 1):
            tokens = row.tokens[row.segments == segment]
            i = next(i for i, e in enumerate(examples) if e.tokens[0] == tokens[0])
            example = examples.pop(i)
            assert (tokens == example.tokens).all()
            assert (row.has_loss[row.segments == segment] == example.has_loss).all()
    assert not examples


def test_signatures_are_split_by_file():
    train, held_out = tasks.signatures()
    assert len(train) > 1000
    assert len(held_out) > 100
    assert not {m[0]["content"] + m[1]["content"] for m in train} & {
        m[0]["content"] + m[1]["content"] for m in held_out
    }
    other, same = tasks.signatures(seed=1)
    assert other != train
    assert same == held_out


def test_prose_has_no_code():
    code = "x = (1, 2)\n" * 30
    words = "Every good sentence has a verb and some words. " * 8
    assert tasks.prose(f"{code}\n\n{words}\n\nShort.") == words.strip()
    assert len(tasks.python_prose()) > 10_000


def test_sums_are_rewarded_for_the_number_alone():
    prompts = [tasks.SUM.format(a=3, b=4)] * 4
    completions = [" 7\n", "It is 7.", "8", "seventeen 17"]
    assert tasks.reward(prompts, completions) == [1.0, 0.5, 0.2, 0.0]
