"""Tests for examples/tools/tokenize_shards.py."""

import gzip
import json
import os
import sys

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
from pyarrow import parquet

from examples.lm import data, token_files, tokenizer
from examples.lm.errors import UserError
from examples.tools import tokenize_shards

TEXTS = [f"document {i} counts {i * i} and é\n" * 3 for i in range(40)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The same documents in each format, and a tokenizer of each kind."""
    root = tmp_path_factory.mktemp("corpus")
    lines = "".join(json.dumps({"text": text, "id": 1}) + "\n\n" for text in TEXTS)
    (root / "a.jsonl").write_text(lines)
    (root / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pa.table({"text": TEXTS}), root / "c.parquet")
    (root / "text").mkdir()
    for i, text in enumerate(TEXTS):
        (root / "text" / f"{i:02}.txt").write_text(text)
    bpe = tokenize_shards.train_vocabulary(iter(TEXTS), 300)
    (root / "tokenizer.json").write_text(bpe)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(root / "sp"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return root


def documents(pattern, path):
    """Returns the texts in all shards, in the order of the files."""
    end = tokenizer.load(str(path)).end_of_text
    vocab_size = tokenizer.load(str(path)).vocab_size
    texts = []
    for file in data.open_source(str(pattern), 4, vocab_size).files:
        ids = file.read(0, file.n_tokens)
        assert ids[-1] == end
        parts = np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]
        texts += [tokenizer.load(str(path)).decode(part[:-1]) for part in parts]
    return texts


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tokenize_shards", *map(str, arguments)])
    tokenize_shards.main()


@pytest.mark.parametrize("files", ["a.jsonl", "b.jsonl.gz", "c.parquet", "text/*.txt"])
def test_documents_survive(corpus, tmp_path, files):
    path = str(corpus / "tokenizer.json")
    found = [path for path, _ in token_files.find(str(corpus / files))]
    _, counts = tokenize_shards.convert(path, "text", 0, str(tmp_path), ("0", found))
    assert documents(tmp_path / "train" / "*.bin", path) == TEXTS
    assert counts["validation"] == 0
    assert not (tmp_path / "validation").exists()


def test_sentencepiece(corpus, tmp_path):
    shard = "0", [str(corpus / "a.jsonl")]
    tokenize_shards.convert(str(corpus / "sp.model"), "text", 0, str(tmp_path), shard)
    decoded = documents(tmp_path / "train" / "0.bin", corpus / "sp.model")
    # SentencePiece normalizes white space.
    assert [text.split() for text in decoded] == [text.split() for text in TEXTS]


def test_the_command_in_a_bucket(corpus, bucket, monkeypatch):
    fs = fsspec.filesystem("gs")
    fs.put_file(str(corpus / "a.jsonl"), f"{bucket}/in/a.jsonl")
    fs.put_file(str(corpus / "c.parquet"), f"{bucket}/in/c.parquet")
    arguments = (f"--out={bucket}/out", "--validation=0.3", "--workers=2")
    run(monkeypatch, "--train_vocab=280", *arguments, f"{bucket}/in/*")
    path = f"{bucket}/out/tokenizer.json"
    assert tokenizer.load(path).vocab_size == 280
    train = documents(f"{bucket}/out/train/*.bin", path)
    validation = documents(f"{bucket}/out/validation/*.bin", path)
    assert sorted(train + validation) == sorted(2 * TEXTS)
    assert not set(train) & set(validation)  # a copy is on the side of its original
    with pytest.raises(UserError, match="exists"):
        run(monkeypatch, f"--tokenizer={path}", *arguments, f"{bucket}/in/*")


def test_a_long_text_is_read_in_pieces(corpus, tmp_path, monkeypatch):
    text = "".join(TEXTS)
    (tmp_path / "long.txt").write_text(text)
    monkeypatch.setattr(tokenize_shards, "_PIECE", 101)
    pieces = list(tokenize_shards.pieces(str(tmp_path / "long.txt"), "text"))
    assert len(pieces) > 20
    assert "".join(piece for piece, _ in pieces) == text
    assert [is_end for _, is_end in pieces] == [False] * (len(pieces) - 1) + [True]
    path = str(corpus / "tokenizer.json")
    shard = "0", [str(tmp_path / "long.txt")]
    tokenize_shards.convert(path, "text", 0, str(tmp_path), shard)
    assert documents(tmp_path / "train" / "0.bin", path) == [text]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": 1', "after 1 documents: JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "field 'text' is None"),
        ("a.jsonl", b'{"text": null}\n', "field 'text' is None"),
        ("a.jsonl", b'{"text": 3}\n', "field 'text' is 3"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "surrogates"),
        ("a.jsonl", b"[1]\n", "list"),
        ("a.jsonl.gz", b"not compressed", "gzip"),
        ("a.parquet", b"not parquet", "Parquet"),
        ("a.txt", b"\xff\xfe", "utf-8"),
        ("a.txt", "cut é".encode()[:-1], "utf-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} .*{words}"):
        list(tokenize_shards.pieces(str(path), "text"))


def test_a_missing_library_is_named(corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="install pyarrow first"):
        list(tokenize_shards.pieces(str(corpus / "c.parquet"), "text"))


def test_a_corpus_without_documents_is_refused(corpus, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("\n")
    arguments = f"--out={tmp_path}/out", f"--tokenizer={corpus}/tokenizer.json"
    with pytest.raises(UserError, match="have no documents"):
        run(monkeypatch, *arguments, "--workers=1", tmp_path / "a.jsonl")


def die(*_):
    os._exit(9)


def test_a_killed_process_ends_the_tool(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_shards, "convert", die)
    arguments = f"--out={tmp_path}/out", f"--tokenizer={corpus}/tokenizer.json"
    with pytest.raises(UserError, match="fewer --workers"):
        run(monkeypatch, *arguments, "--workers=1", corpus / "a.jsonl")


@pytest.mark.parametrize("content", [b"", b"{}", b"\0\1"])
@pytest.mark.parametrize("name", ["tokenizer.json", "sp.model"])
def test_a_wrong_tokenizer_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=name):
        tokenizer.load(str(path))
