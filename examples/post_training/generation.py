"""Answers of a model to prompts."""

# pyright: reportMissingImports=false

from typing import Any, cast

from flax import nnx
from tokenizers import Tokenizer
from tunix.generate.sampler import CacheConfig, Sampler

from examples.lm import Config
from examples.lm.tokenizer import END_OF_TEXT


class TextTokenizer:
    """The tokenizer of a text, as tunix wants it."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def pad_id(self) -> int:
        return self.eos_id()

    def eos_id(self) -> int:
        return cast(int, self._tokenizer.token_to_id(END_OF_TEXT))

    def bos_id(self) -> int:
        return 0  # which tunix takes for none


def answers(
    model: nnx.Module, config: Config, tokenizer: Any, prompts: list[str], length: int
) -> list[str]:
    """Returns what a model answers with the likeliest tokens.

    Args:
      model: of tunix.
      config: of the model.
      tokenizer: as tunix wants it.
      prompts: what to answer.
      length: the most tokens of the longest prompt and its answer together.
    """
    shape = {k: config[k] for k in ("num_layers", "num_kv_heads", "head_dim")}
    longest = max(len(tokenizer.encode(prompt)) for prompt in prompts)
    cache = CacheConfig(cache_size=length, **shape)
    output = Sampler(model, tokenizer, cache)(
        prompts, length - longest, max_prompt_length=longest
    )
    return output.text
