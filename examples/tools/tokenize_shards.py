r"""Turns text into shards of token ids for examples/pretrain.py, in parallel.

    python -m examples.tools.tokenize_shards --tokenizer=tokenizer.json \
        --out=gs://my-bucket/tokens --workers=16 'gs://my-bucket/texts/*.jsonl.gz'

Reads .jsonl and .parquet with a document in the field "text", and any other file as one
document; all of them also as .gz. Writes OUT/train/*.bin with the header of llm.c:
uint16 if the vocabulary fits, else uint32. Memory does not grow with the text.
"""

import argparse
import codecs
import contextlib
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import fsspec
import numpy as np

from examples.lm import tokenizer as tokenizer_of
from examples.lm.errors import UserError, explained, reason
from examples.lm.token_files import LLMC, LLMC_HEADER_BYTES, find

_PIECE = 2**20  # characters
_TRAIN_ON = 2**26  # characters to train a vocabulary on, at most

Piece = tuple[str, bool]  # text, and True at the end of its document


def pieces(path: str, field: str) -> Iterator[Piece]:
    """Yields the documents of a file.

    Raises:
      UserError: the file, or one of its documents, cannot be read.
    """
    number = 0
    try:
        for text, is_end in _read(path, field):
            if not isinstance(text, str):
                raise ValueError(f"field {field!r} is {text!r:.40}, not a text")
            text.encode()  # raises if it is not Unicode
            yield text, is_end
            number += is_end
    except Exception as error:  # from any storage and format
        raise UserError(
            f"{path} cannot be read after {number} documents: {reason(error)}"
        ) from error


def _read(path: str, field: str) -> Iterator[tuple[Any, bool]]:
    name = path.lower().removesuffix(".gz")
    compression = "gzip" if path.lower().endswith(".gz") else None
    with fsspec.open(path, "rb", compression=compression) as opened:
        file: Any = opened
        if name.endswith(".parquet"):
            from pyarrow import parquet

            for batch in parquet.ParquetFile(file).iter_batches(64, columns=[field]):
                yield from ((text, True) for text in batch[field].to_pylist())
        elif name.endswith(".jsonl"):
            for line in filter(bytes.strip, file):
                yield json.loads(line).get(field), True
        else:
            decoder, text = codecs.getincrementaldecoder("utf-8-sig")(), ""
            while block := file.read(_PIECE):
                text += decoder.decode(block)
                end = text.rfind("\n") + 1 or len(text)
                yield text[:end], False
                text = text[end:]
            yield text + decoder.decode(b"", final=True), True


def _groups(items: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yields groups that are large enough to keep the tokenizer's threads busy."""
    group, size = [], 0
    for item in items:
        group.append(item)
        size += len(item[0])
        if size > _PIECE:
            yield group
            group, size = [], 0
    yield group


def convert(
    tokenizer: str,
    field: str,
    validation: float,
    out: str,
    shard: tuple[str, list[str]],
) -> tuple[str, dict[str, int]]:
    """Tokenizes the files of a shard, and returns its name and numbers of tokens.

    A document's hash decides whether it is for validation, independently of its file.
    """
    name, paths = shard
    encode, _, end_of_text, vocab_size = tokenizer_of.load(tokenizer)
    magic = 20240520 if vocab_size <= 2**16 else 20240801
    version, dtype = LLMC[magic]
    counts = {"train": 0, "validation": 0}
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        files = {
            side: stack.enter_context(open(f"{scratch}/{side}", "wb"))
            for side in counts
        }
        for file in files.values():
            file.write(bytes(LLMC_HEADER_BYTES))
        is_start, side = True, "train"
        for group in _groups(piece for path in paths for piece in pieces(path, field)):
            encoded = encode([text for text, _ in group])
            for (text, is_end), ids in zip(group, encoded, strict=True):
                if is_start:
                    digest = hashlib.md5(text.encode()).digest()
                    is_held_out = int.from_bytes(digest[:4], "big") < validation * 2**32
                    side = "validation" if is_held_out else "train"
                is_start = is_end
                ids = [*ids, end_of_text] if is_end else ids
                files[side].write(np.array(ids, dtype).tobytes())
                counts[side] += len(ids)
        for side, file in files.items():
            file.seek(0)
            file.write(np.array([magic, version, counts[side]], "<i4").tobytes())
            file.close()
            if counts[side]:
                _put(file.name, f"{out}/{side}/{name}.bin")
    return name, counts


def _put(source: str, target: str) -> None:
    """Copies a finished file. Its name appears only with all of its content."""
    with explained(f"{target} cannot be written"):
        fs, path = fsspec.url_to_fs(target)
        if "://" in target:
            fs.put_file(source, path)
            return
        fs.makedirs(os.path.dirname(path), exist_ok=True)
        fs.put_file(source, path + ".part")
        os.replace(path + ".part", path)


def train_vocabulary(texts: Iterable[str], vocab_size: int) -> str:
    """Returns a byte-level BPE tokenizer as JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[tokenizer_of.END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def _first(paths: list[str], field: str) -> Iterator[str]:
    size = 0
    for path in paths:
        for text, _ in pieces(path, field):
            yield text
            if (size := size + len(text)) > _TRAIN_ON:
                return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("files", nargs="+", help="paths and globs, local or in a bucket")
    flag("--out", required=True, help="directory, local or in a bucket")
    flag("--tokenizer", help="tokenizer.json or SentencePiece .model")
    flag("--train_vocab", type=int, help="train a BPE of this size: OUT/tokenizer.json")
    flag("--field", default="text", help="name of the field (%(default)s)")
    flag("--validation", type=float, default=0, help="share of the documents (0)")
    flag("--shards", type=int, default=64, help="at most (%(default)s)")
    flag("--workers", type=int, default=os.cpu_count(), help="processes (%(default)s)")
    options = parser.parse_args()
    if bool(options.tokenizer) == bool(options.train_vocab):
        parser.error("give one of --tokenizer and --train_vocab")
    if min(options.shards, options.workers) < 1 or not 0 <= options.validation < 1:
        parser.error("--shards and --workers are from 1, --validation from 0 below 1")
    with explained(f"{options.out} cannot be used"):
        fs, out = fsspec.url_to_fs(options.out)
        if fs.exists(f"{out}/train"):
            raise UserError(f"{out}/train exists: delete it or give another --out.")
    files = [*dict.fromkeys(path for x in options.files for path, _ in find(x))]
    tokenizer = options.tokenizer or f"{options.out}/tokenizer.json"
    if options.train_vocab:
        vocabulary = train_vocabulary(_first(files, options.field), options.train_vocab)
        with explained(f"{tokenizer} cannot be written"):
            fs.makedirs(out, exist_ok=True)
            fs.pipe_file(f"{out}/tokenizer.json", vocabulary.encode())
    tokenizer_of.load(tokenizer)  # one error here instead of one in each process
    n = min(len(files), options.shards)
    shards = [(f"{i:05}", files[i::n]) for i in range(n)]
    job = partial(convert, tokenizer, options.field, options.validation, options.out)
    # Several processes would multiply the tokenizer's own threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", str(options.workers == 1).lower())
    total = 0
    # Pool of multiprocessing would wait forever for a process that has been killed.
    spawn = multiprocessing.get_context("spawn")
    with (
        explained("Tokenizing failed", "Try fewer --workers if memory was short."),
        ProcessPoolExecutor(options.workers, spawn) as pool,
    ):
        try:
            for name, counts in pool.map(job, shards):
                print(f"{options.out}/*/{name}.bin: {counts} tokens", flush=True)
                total += sum(counts.values())
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    if not total:
        raise UserError(f"{', '.join(options.files)} have no documents.")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(str(error))
