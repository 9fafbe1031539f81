"""Models in Hugging Face's layout: loaded through tunix, and saved again."""

# pyright: reportMissingImports=false

import functools
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from tunix.models.gemma3 import model as gemma3
from tunix.models.gemma3 import params_safetensors as gemma3_params
from tunix.models.llama3 import model as llama3
from tunix.models.llama3 import params as llama3_params
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as qwen2_params
from tunix.models.qwen3 import model as qwen3
from tunix.models.qwen3 import params as qwen3_params

from examples.lm.errors import UserError
from examples.post_training.chats import ChatTokenizer, read_object

Numbers = dict[str, Any]  # the content of config.json


class Pretrained(NamedTuple):
    """A model with its tokenizer."""

    model: nnx.Module
    tokenizer: ChatTokenizer
    directory: Path  # it was loaded from this one


class Family(NamedTuple):
    """Models of one `model_type`."""

    module: Any  # tunix's module of the model
    params: Any  # tunix's module of its loader
    model: type
    config: Callable[[Numbers], Any]  # from config.json to tunix's config


def load(directory: Path) -> Pretrained:
    """Loads a model of Hugging Face's layout in float32.

    Raises:
      UserError: the directory lacks a file or a tensor, or has another architecture.
    """
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (directory / name).exists():
            raise UserError(
                f"{directory} has no {name}: give --config.model a directory in Hugging"
                " Face's layout. `make model` writes one with SmolLM2-135M-Instruct."
            )
    numbers = read_object(directory / "config.json")
    model_type = numbers.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(
            f"The model_type in {directory}/config.json is {model_type!r}, but the"
            f" supported ones are {', '.join(FAMILIES)}."
        )
    family = FAMILIES[model_type]
    try:
        config = family.config(numbers)
    except KeyError as error:
        raise UserError(f"{directory}/config.json has no {error}.") from error
    tokenizer = ChatTokenizer.load(directory)
    _check_tensors(directory, family, config)
    set_rope(family.module, numbers)
    model = family.params.create_model_from_safe_tensors(
        str(directory), config, dtype=jnp.float32, mode="original"
    )
    return Pretrained(model, tokenizer, directory)


def save(pretrained: Pretrained, model: nnx.Module, directory: Path) -> None:
    """Writes a model in the layout that it was loaded from."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in pretrained.directory.iterdir():
        is_index = file.name.endswith(".index.json")
        if file.suffix in (".json", ".jinja", ".model") and not is_index:
            shutil.copy(file, directory)
    tensors = {
        name: np.ascontiguousarray(jax.device_get(x))
        for name, x in hf_tensors(nnx.state(model, nnx.Param)).items()
    }
    safetensors.numpy.save_file(
        tensors, directory / "model.safetensors", metadata={"format": "pt"}
    )


_TUNIX_ROPE = {module: module.apply_rope for module in (llama3, qwen3)}


def set_rope(module: Any, numbers: Numbers) -> None:
    """Gives tunix's Llama and Qwen3 the frequencies of `config.json`.

    tunix 0.1.7 calls `apply_rope` there without the configured theta, so 1,000,000 is
    used for all models. The module's function is replaced: in this process the last
    model that was loaded decides.
    """
    rope = numbers.get("rope_parameters") or numbers.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default" and (kind != "llama3" or module is not llama3):
        raise UserError(
            f"The rotary embedding has the scaling {kind!r}: not supported."
        )
    if module not in _TUNIX_ROPE:
        return
    theta = float(_rope_theta(numbers))

    @functools.wraps(_TUNIX_ROPE[module])
    def apply_rope(inputs: jax.Array, positions: jax.Array, head_dim: int) -> jax.Array:
        frequencies = theta ** -(jnp.arange(0, head_dim, 2) / head_dim)
        if kind == "llama3":
            frequencies = llama3_scaling(frequencies, rope)
        angles = positions[..., None, None] * frequencies
        sin, cos = jnp.sin(angles), jnp.cos(angles)
        a, b = jnp.split(inputs, 2, axis=-1)
        rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
        return rotated.astype(inputs.dtype)

    module.apply_rope = apply_rope


def llama3_scaling(frequencies: jax.Array, rope: Numbers) -> jax.Array:
    """Slows down low frequencies, as Llama 3.1 and later do for long contexts."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / rope["factor"])


def _rope_theta(numbers: Numbers) -> float:
    rope = numbers.get("rope_parameters") or numbers.get("rope_scaling") or {}
    return numbers.get("rope_theta") or rope.get("rope_theta", 10_000)


def _shared(numbers: Numbers) -> Numbers:
    heads = numbers["num_attention_heads"]
    return {
        "num_layers": numbers["num_hidden_layers"],
        "embed_dim": numbers["hidden_size"],
        "hidden_dim": numbers["intermediate_size"],
        "num_heads": heads,
        "head_dim": numbers.get("head_dim") or numbers["hidden_size"] // heads,
        "num_kv_heads": numbers.get("num_key_value_heads") or heads,
    }


def _decoder(module: Any, tied: str, numbers: Numbers) -> Any:
    return module.ModelConfig(
        **_shared(numbers),
        vocab_size=numbers["vocab_size"],
        rope_theta=_rope_theta(numbers),
        norm_eps=numbers["rms_norm_eps"],
        **{tied: numbers.get("tie_word_embeddings", False)},
    )


def _gemma3(numbers: Numbers) -> Any:
    rope = numbers.get("rope_parameters") or {}  # by the kind of layer
    full, sliding = (
        rope.get(f"{kind}_attention", {}).get("rope_theta")
        for kind in ("full", "sliding")
    )
    shared = _shared(numbers)
    if numbers.get("query_pre_attn_scalar", shared["head_dim"]) != shared["head_dim"]:
        raise UserError(
            "tunix scales queries by head_dim; this Gemma has another scale."
        )
    return gemma3.ModelConfig(
        **shared,
        num_embed=numbers["vocab_size"],
        sliding_window_size=numbers["sliding_window"],
        global_base_frequency=full or numbers.get("rope_theta", 1_000_000),
        local_base_frequency=sliding or numbers.get("rope_local_base_freq", 10_000),
        param_dtype=jnp.float32,
    )


_llama = functools.partial(_decoder, llama3, "weight_tying")
_qwen2 = functools.partial(_decoder, qwen2, "use_tied_embedding")
_qwen3 = functools.partial(_decoder, qwen3, "use_tied_embedding")
FAMILIES = {
    "llama": Family(llama3, llama3_params, llama3.Llama3, _llama),
    "qwen2": Family(qwen2, qwen2_params, qwen2.Qwen2, _qwen2),
    "qwen3": Family(qwen3, qwen3_params, qwen3.Qwen3, _qwen3),
    "gemma3_text": Family(gemma3, gemma3_params, gemma3.Gemma3, _gemma3),
}


def _same(x: Any) -> Any:
    return x


def _input_first(x: Any) -> Any:  # [width, out] or [width, heads, head_dim]
    return x.reshape(len(x), -1).T


def _output_last(x: Any) -> Any:  # [heads, head_dim, width]
    return x.reshape(-1, x.shape[-1]).T


def _by_head(x: Any) -> Any:  # [heads, width, head_dim]
    return x.swapaxes(1, 2).reshape(-1, x.shape[1])


# From the paths of tunix's parameters, for layers without `layers/N/`, to names of
# Hugging Face. Letters in brackets stand for one tensor each, along the first axis.
RULES: list[tuple[str, str, Callable[[Any], Any]]] = [
    (r"embedder/input_embedding", "model.embed_tokens", _same),
    (r"lm_head/w", "lm_head", _input_first),
    (r"final_norm/\w+", "model.norm", _same),
    (r"attn/([qkv])_proj/w", r"self_attn.\1_proj", _input_first),
    (r"attn/([qkv])_bias", r"self_attn.\1_proj.bias", _same),
    (r"attn/q_einsum/w", "self_attn.q_proj", _by_head),
    (r"attn/(q?kv)_einsum/w", r"self_attn.[\1]_proj", _by_head),
    (r"attn/(o_proj|attn_vec_einsum)/w", "self_attn.o_proj", _output_last),
    (r"attn/([qk])_norm/w", r"self_attn.\1_norm", _same),
    (r"attn/_query_norm/scale", "self_attn.q_norm", _same),
    (r"attn/_key_norm/scale", "self_attn.k_norm", _same),
    (r"mlp/(\w+_proj)/kernel", r"mlp.\1", _input_first),
    (r"(\w+_layernorm)/w", r"\1", _same),
    (r"pre_attention_norm/scale", "input_layernorm", _same),
    (r"post_attention_norm/scale", "post_attention_layernorm", _same),
    (r"pre_ffw_norm/scale", "pre_feedforward_layernorm", _same),
    (r"post_ffw_norm/scale", "post_feedforward_layernorm", _same),
]


def hf_tensors(state: Any) -> dict[str, Any]:
    """Renames and reshapes the parameters of a model of tunix for Hugging Face."""
    found = {}
    for keys, variable in nnx.to_flat_state(state):
        prefix, path = "", "/".join(map(str, keys))
        if keys[0] == "layers":
            prefix, path = f"model.layers.{keys[1]}.", "/".join(map(str, keys[2:]))
        pattern, name, change = next(r for r in RULES if re.fullmatch(r[0], path))
        name, x = prefix + re.sub(pattern, name, path), variable[...]
        letters = re.search(r"\[(\w+)\]", name)
        for letter, part in zip(letters[1], x, strict=True) if letters else [("", x)]:
            full = re.sub(r"\[\w+\]", letter, name)
            full += "" if full.endswith(".bias") else ".weight"
            found[full] = change(part)
    return found


def _check_tensors(directory: Path, family: Family, config: Any) -> None:
    """Checks names and shapes in the files; tunix would leave out what is missing."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safetensors.safe_open(file, "numpy") as tensors:
                for name in [*tensors.keys()]:  # not a mapping
                    found[name] = tuple(tensors.get_slice(name).get_shape())
        except safetensors.SafetensorError as error:
            raise UserError(f"{file} is damaged: {error}.") from error
    if not found:
        raise UserError(f"{directory} has no *.safetensors file.")

    def expected() -> dict[str, jax.Array]:
        model = family.model(config, rngs=nnx.Rngs(0))
        return hf_tensors(nnx.state(model, nnx.Param))

    for name, x in jax.eval_shape(expected).items():
        shape = found.get(name)
        if shape is None:
            raise UserError(f"The files in {directory} lack the tensor {name}.")
        if shape != x.shape:
            raise UserError(
                f"{name} in {directory} has the shape {shape}, but config.json says"
                f" {x.shape}."
            )
