"""Text as people have it: read right, or refused by name."""

import codecs
import functools
import gzip
import json
import os
import subprocess
import sys

import pytest

from examples.lm import vocabulary
from examples.lm.corpus import read_documents
from examples.lm.errors import UserError
from tests.examples.pretraining import ROOT, opened

# Without the time of day, or two processes name the tests apart.
zipped = functools.partial(gzip.compress, mtime=0)
LINE = '{"text": "fine"}\n'


def with_file(tmp_path, name: str, content: bytes) -> str:
    """Returns a path of two documents, of which one is the given file."""
    (tmp_path / "other.txt").write_text("another document")
    (tmp_path / name).write_bytes(content)
    return f"{tmp_path}/{name},{tmp_path}/other.txt"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "é\nb".encode()),
        ("a.txt", codecs.BOM_UTF8 + "é\nb".encode()),
        ("a.txt", "é\r\nb".encode()),
        ("a.txt", "é\rb".encode()),
        ("a.txt.gz", zipped("é\nb".encode())),
        ("a.txt.gz", zipped(codecs.BOM_UTF8 + "é\r\nb".encode())),
        ("a.txt.gz", zipped("é\n".encode()) + zipped(b"b")),
        ("A.TXT.GZ", zipped("é\nb".encode())),
        ("a.jsonl", json.dumps({"text": "é\nb"}).encode()),
        ("a.jsonl", codecs.BOM_UTF8 + b'{"text": "\\u00e9\\nb"}\r\n\r\n'),
        ("a.jsonl.gz", zipped(b'{"text": "\\u00e9\\nb", "id": 1}')),
    ],
)
def test_one_text_in_many_forms(tmp_path, name, content):
    path = with_file(tmp_path, name, content)
    assert read_documents(path) == ["é\nb", "another document"]
    assert "é\nb" in read_documents(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "text".encode("utf-16"), r"a\.txt is UTF-16, but .*iconv"),
        ("a.txt", codecs.BOM_UTF16_BE + "x".encode("utf-16-be"), "is UTF-16"),
        ("a.txt", "text".encode("utf-32"), "is UTF-32"),
        ("a.txt", "text".encode("utf-16-le"), r"a\.txt:1 is not UTF-8 .* 0x00"),
        ("a.txt", "one\nd\xe9j\xe0\n".encode("latin-1"), r"a\.txt:2 is not .* 0xe9"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\x00\x00", r"a\.txt:1 is not UTF-8 text"),
        ("a.txt", b"text\n\n\x00", r"a\.txt:3 is not UTF-8 text"),
        ("a.txt", zipped(b"text"), r"a\.txt:1 is not UTF-8 text"),
        ("a.txt.gz", b"text", r"a\.txt\.gz cannot be read: Not a gzipped file"),
        ("a.txt.gz", zipped(b"text" * 99)[:-9], r"gz cannot be read: .*ended"),
        ("a.txt.gz", zipped(b"text" * 99)[:12] + b"\xff" * 40, "cannot be read"),
        ("a.jsonl", LINE.encode() + b'{"text": "\xff"}', r"a\.jsonl:2 is not UTF-8"),
        ("a.jsonl.gz", zipped(LINE.encode() + b"{"), r"gz:2 is not a JSON"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_documents(with_file(tmp_path, name, content))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[" * 100_000,
        '{"text": ' + "9" * 5000 + "}",
        '{"text": "\\ud800"}',
        '{"text": null}',
        '{"Text": "x"}',
        "text",
        '"text"',
        LINE.strip() + LINE.strip(),
        "\ufeff" + LINE.strip(),
    ],
)
def test_errors_in_json_lines_name_file_and_line(tmp_path, line):
    path = with_file(tmp_path, "a.jsonl", f"{LINE}\n{line}\n{LINE}".encode())
    with pytest.raises(UserError, match=r'a\.jsonl:3 is not a JSON .*"text"'):
        read_documents(path)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"line {i} of a book" for i in range(200)),
        " ".join(f"word{i}" for i in range(2000)),
        "".join(f"word{i}" for i in range(2000)),
        "漢字" * 2000,
    ],
)
@pytest.mark.parametrize("name", ["book.txt", "book.jsonl", "book.md.gz"])
def test_a_single_document_is_cut_to_have_something_to_validate_on(
    tmp_path, text, name
):
    content = json.dumps({"text": text}) if "json" in name else text
    data = content.encode()
    (tmp_path / name).write_bytes(zipped(data) if "gz" in name else data)
    parts = read_documents(str(tmp_path / name))
    assert "".join(parts) == text
    assert 2 <= len(parts) <= 100
    ends = {part[-1] for part in parts[:-1]}
    if "\n" in text or " " in text:
        assert len(ends) == 1
        assert ends <= {"\n", " "}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_is_named(corpus):
    opened(corpus)
    closed = corpus / "closed"
    closed.mkdir(mode=0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"directory .*closed cannot be read: Perm"):
            read_documents(str(corpus))
        os.seteuid(0)
        closed.rmdir()
        (corpus / "00.txt").chmod(0o600)
        os.seteuid(65534)
        with pytest.raises(UserError, match=r"00\.txt cannot be read: Permission"):
            read_documents(str(corpus))
    finally:
        os.seteuid(0)


def test_a_file_may_have_the_name_of_a_pattern(tmp_path):
    for name in ("a[1].txt", "b*.txt"):
        (tmp_path / name).write_text(name)
    path = f"{tmp_path}/a[1].txt, {tmp_path}/b*.txt"
    assert read_documents(path) == ["a[1].txt", "b*.txt"]


@pytest.mark.parametrize("path", ["{0}/00.txt,", ",", "{0}/*.tex", "{0}/none/**"])
def test_a_part_of_the_path_that_names_nothing(corpus, path):
    with pytest.raises(FileNotFoundError, match="names no file"):
        read_documents(path.format(corpus))


def test_cutting_leaves_the_tokens_of_words_alone(monkeypatch):
    words = "def f(x):\n    return  x\n\n\tif é 漢字 123  \n \x1c a\x85b\u2003c !\x1c\n"
    text = words * 50
    whole = vocabulary.train_tokenizer([text], 300)
    expected = whole.encode(text).ids
    pattern = vocabulary._PIECE.pattern.replace("16384", "20")
    monkeypatch.setattr(vocabulary, "_PIECE", vocabulary.re.compile(pattern, 16))
    assert len(list(vocabulary._pieces(text))) > 50
    cut = vocabulary.train_tokenizer([text], 300)
    assert cut.to_str() == whole.to_str()
    assert vocabulary.pack(whole, [text])[:-1].tolist() == expected


LONG = """
import resource, sys, time
sys.path.insert(0, {root!r})
from examples.lm import data
start = time.perf_counter()
tokens = data.load({path!r}, 1000, cache_dir={cache!r})
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(time.perf_counter() - start, peak, tokens.train.size)
"""


def measure(tmp_path, characters: int) -> tuple[float, float]:
    """Returns time and memory of making tokens of a line without a space."""
    path = tmp_path / f"{characters}.txt"
    block = "".join(chr(97 + (i * i * 7919 >> 5) % 26) for i in range(100_003))
    path.write_text((block * (characters // len(block) + 1))[:characters])
    code = LONG.format(root=str(ROOT), path=str(path), cache=str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    seconds, peak, _ = map(float, done.stdout.split())
    return seconds, peak


def test_time_and_memory_are_linear_in_the_length_of_a_line(tmp_path):
    (short, _), (long, peak) = measure(tmp_path, 10**6), measure(tmp_path, 4 * 10**6)
    assert long < 3 * 4 * short  # quadratic: sixteen times
    _, base = measure(tmp_path, 10**5)
    assert peak - base < 25 * 4 * 10**6


def test_training_on_words_that_never_come_again_takes_a_part_of_them():
    """A hundred bytes of memory for each of theirs are too much for all of them."""
    lines = [f"def f{i}(x): return x" for i in range(20)]
    long = "".join(chr(97 + i * i % 23) for i in range(300 * 16_384))
    sample = list(vocabulary._to_train_on([*lines, long, *lines]))
    assert sample[:20] == sample[-20:] == lines
    assert "".join(sample[20:-20]) == long[: 128 * 16_384]
