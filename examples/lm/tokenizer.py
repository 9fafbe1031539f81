"""A given tokenizer: `tokenizer.json` of Hugging Face, or a SentencePiece model."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import fsspec
import numpy as np

from examples.lm.errors import UserError, explained

END_OF_TEXT = "<|endoftext|>"
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class Tokenizer(NamedTuple):
    encode: Callable[[list[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]
    end_of_text: int  # the id after each document
    vocab_size: int


def load(path: str) -> Tokenizer:
    """Reads a tokenizer from a disk or a bucket.

    Raises:
      UserError: the file is not a tokenizer, or has no token for the end of a text.
    """
    advice = (
        "Give a tokenizer.json or a SentencePiece .model."
        " examples.tools.tokenize_shards can train one."
    )
    with explained(f"{path} cannot be read as a tokenizer", advice):
        fs, name = fsspec.url_to_fs(path)
        make = _sentencepiece if path.endswith(".model") else _huggingface
        tokenizer = make(fs.cat_file(name))
    if tokenizer.end_of_text < 0:
        raise UserError(
            f"{path} has no token for the end of a text: it needs one of"
            f" {', '.join(_ENDS)}."
        )
    return tokenizer


def _huggingface(content: bytes) -> Tokenizer:
    from tokenizers import Tokenizer as HuggingFace

    model = HuggingFace.from_str(content.decode())
    ids = model.get_vocab(with_added_tokens=True)
    return Tokenizer(
        lambda texts: [
            x.ids for x in model.encode_batch_fast(texts, add_special_tokens=False)
        ],
        lambda tokens: model.decode(np.asarray(tokens).tolist()),
        next((ids[end] for end in _ENDS if end in ids), -1),
        max(ids.values()) + 1,  # some have gaps
    )


def _sentencepiece(content: bytes) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_proto=content)  # pyright: ignore[reportCallIssue]
    return Tokenizer(
        model.encode,  # pyright: ignore[reportAttributeAccessIssue]
        lambda tokens: model.decode(np.asarray(tokens).tolist()),  # pyright: ignore[reportAttributeAccessIssue]
        model.eos_id(),
        model.vocab_size(),
    )
