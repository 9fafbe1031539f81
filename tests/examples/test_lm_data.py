import itertools
import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from examples.lm import data, vocabulary
from examples.lm.corpus import read_documents


def load(corpus, tmp_path, **settings):
    cache = tmp_path / "cache"
    tokens = data.load(str(corpus), vocab_size=300, cache_dir=str(cache), **settings)
    (tokenizer,) = cache.glob("*/tokenizer.json")
    return tokens, Tokenizer.from_file(str(tokenizer))


def test_standard_library_is_the_default_corpus():
    documents = read_documents()
    assert len(documents) > 300
    assert any("class ArgumentParser" in document for document in documents)
    assert documents == read_documents()


def test_reads_files_globs_and_directories_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.md", "sub/d.tex", "e.bin"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
    assert read_documents(str(tmp_path)) == ["a.txt", "b.txt", "sub/c.md"]
    assert read_documents(f"{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert read_documents(f"{tmp_path}/**/*.tex, {tmp_path}/e.bin") == [
        "sub/d.tex",
        "e.bin",
    ]


def test_reads_json_lines(tmp_path):
    file = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": t}) for t in ("one\u2028two", "three", "", "three")]
    file.write_text("\n\n".join(lines))
    assert read_documents(str(file)) == ["one\u2028two", "three"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"content": "x"}', '{"text": 1}'])
def test_json_lines_without_text_are_an_error_with_file_and_line(tmp_path, line):
    file = tmp_path / "texts.jsonl"
    file.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=r'texts.jsonl:2 is not .* "text"'):
        read_documents(str(file))


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt.* names no file"):
        read_documents(f"{tmp_path}/nothing.txt")


def test_directory_without_text_is_an_error(tmp_path):
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    with pytest.raises(FileNotFoundError, match="names no file"):
        read_documents(str(tmp_path))


@pytest.mark.parametrize("texts", [[""], ["one"], ["same", "same", " \n"]])
def test_fewer_than_two_documents_are_an_error(tmp_path, texts):
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    with pytest.raises(ValueError, match="at least 2 are needed"):
        read_documents(str(tmp_path))


def test_split_is_by_document(corpus, tmp_path):
    tokens, tokenizer = load(corpus, tmp_path, validation_fraction=0.2)
    sides = []
    for side in tokens:
        text = tokenizer.decode(side.tolist(), skip_special_tokens=False)
        sides.append(text.split(vocabulary.END_OF_TEXT)[:-1])
    train, validation = sides
    assert (len(train), len(validation)) == (16, 4)
    assert sorted(train + validation) == sorted(read_documents(str(corpus)))


def test_split_depends_on_the_seed_alone():
    documents = [str(i) for i in range(100)]
    assert data.split(documents, 0.1, 0) == data.split(documents, 0.1, 0)
    assert data.split(documents, 0.1, 0) != data.split(documents, 0.1, 1)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_split_leaves_a_document_on_each_side(fraction):
    train, validation = data.split(["a", "b", "c"], fraction, seed=0)
    assert train
    assert validation


def test_pack_ends_every_document(corpus):
    documents = read_documents(str(corpus))
    tokenizer = vocabulary.train_tokenizer(documents, 300)
    tokens = vocabulary.pack(tokenizer, documents)
    end = tokenizer.token_to_id(vocabulary.END_OF_TEXT)
    assert tokens.dtype == np.uint16
    assert tokens[-1] == end
    assert np.count_nonzero(tokens == end) == len(documents)
    expected = itertools.chain.from_iterable(
        [*tokenizer.encode(d).ids, end] for d in documents
    )
    assert tokens.tolist() == list(expected)


def test_tokenizer_gives_back_any_text(corpus):
    tokenizer = vocabulary.train_tokenizer(read_documents(str(corpus)), 300)
    text = "def é(): return '\t漢字 \U0001f525'\r\n\x00"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_an_epoch_predicts_every_token_once():
    tokens = np.arange(1 + 7 * 4 + 3, dtype=np.uint16)  # 7 windows and a rest of 3
    batches = data.train_batches(tokens, sequence_length=4, batch_size=1, seed=0)
    epoch = np.concatenate(list(itertools.islice(batches, 7)))
    assert epoch.dtype == np.int32
    assert epoch.shape == (7, 5)
    np.testing.assert_array_equal(np.diff(epoch), 1)
    assert sorted(epoch[:, 1:].ravel().tolist()) == list(range(1, 29))


def test_every_epoch_has_another_order_and_every_seed():
    tokens = np.arange(101, dtype=np.uint16)
    first = data.train_batches(tokens, 1, batch_size=100, seed=0)
    other = data.train_batches(tokens, 1, batch_size=100, seed=1)
    orders = [next(first), next(first), next(other)]
    for a, b in itertools.combinations(orders, 2):
        assert sorted(a[:, 0].tolist()) == sorted(b[:, 0].tolist())
        assert a[:, 0].tolist() != b[:, 0].tolist()


def test_position_of_the_batches_can_be_restored():
    tokens = np.arange(100, dtype=np.uint16)
    batches = data.train_batches(tokens, 3, batch_size=2, seed=0)
    for _ in range(20):  # past the first epoch
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    restored = data.train_batches(tokens, 3, batch_size=2, seed=0)
    restored.set_state(state)
    for _ in range(20):
        np.testing.assert_array_equal(next(batches), next(restored))


def test_validation_batches_are_always_the_same():
    tokens = np.arange(100, dtype=np.uint16)
    first = data.validation_batches(tokens, 3, batch_size=4, n_batches=2)
    again = data.validation_batches(tokens, 3, batch_size=4, n_batches=2)
    np.testing.assert_array_equal(first, again)
    assert np.shape(first) == (2, 4, 4)


def test_validation_repeats_what_is_less_than_a_batch():
    tokens = np.arange(10, dtype=np.uint16)
    (batch,) = data.validation_batches(tokens, 3, batch_size=8, n_batches=5)
    assert batch.shape == (8, 4)
    assert sorted(batch[:3, 0]) == [0, 3, 6]
    np.testing.assert_array_equal(batch[3:6], batch[:3])


@pytest.mark.parametrize("n_processes", [1, 2, 4])
def test_rows_of_all_processes_make_the_same_batches(n_processes):
    tokens = np.arange(100, dtype=np.uint16)
    whole = data.train_batches(tokens, 3, batch_size=8, seed=0)
    n = 8 // n_processes
    parts = [
        data.train_batches(tokens, 3, 8, seed=0, rows=slice(i * n, (i + 1) * n))
        for i in range(n_processes)
    ]
    for _ in range(10):
        rows = np.concatenate([next(part) for part in parts])
        np.testing.assert_array_equal(rows, next(whole))
    assert all(part.get_state() == whole.get_state() for part in parts)


def test_too_few_tokens_are_an_error():
    with pytest.raises(ValueError, match=r"3 tokens, too few for a window of 8 \+ 1"):
        data.train_batches(np.arange(3), 8, batch_size=1, seed=0)


def test_a_batch_of_more_windows_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"batch_size is 4, but .* only 3 windows"):
        data.train_batches(np.arange(10), 3, batch_size=4, seed=0)


def test_cache_is_used(corpus, tmp_path, monkeypatch):
    first, _ = load(corpus, tmp_path)
    monkeypatch.delattr(data, "train_tokenizer")
    again, _ = load(corpus, tmp_path)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_cache_knows_the_corpus_and_the_settings(corpus, tmp_path):
    cache = tmp_path / "cache"

    def entries(**settings):
        settings = {"vocab_size": 300, "cache_dir": str(cache)} | settings
        data.load(str(corpus), **settings)
        return len(list(cache.iterdir()))

    assert entries() == entries() == 1
    assert entries(vocab_size=310) == 2
    assert entries(split_seed=1) == 3
    assert entries(validation_fraction=0.5) == 4
    (corpus / "00.txt").write_text("something else")
    assert entries() == 5


def test_interrupted_writing_leaves_no_cache_entry(corpus, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("No space left on device")

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(data.np, "savez", full_disk)
        with pytest.raises(OSError, match="No space left"):
            load(corpus, tmp_path)
    assert list(cache.iterdir()) == []
    load(corpus, tmp_path)


def test_vocabulary_is_as_large_as_asked(corpus):
    tokenizer = vocabulary.train_tokenizer(read_documents(str(corpus)), 300)
    assert tokenizer.get_vocab_size() == 300
    assert len(tokenizer.encode(" counts").ids) == 1
