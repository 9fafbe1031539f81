"""Memory of weights, gradients and optimizer state, exact from shapes.

python -m benchmarks.step.memory
"""

from typing import Any

import jax
import optax
from flax import nnx

import ember_optax
from benchmarks.common import store
from benchmarks.step.report import MEMORY
from examples.lm.model import Decoder

CHIPS = 64
MODELS: dict[str, dict[str, Any]] = {
    "135M (SmolLM2)": {
        "vocab_size": 49_152,
        "width": 576,
        "layers": 30,
        "heads": 9,
        "kv_heads": 3,
        "mlp_width": 1536,
        "tie_embeddings": True,
    },
    "1.2B (Llama 3.2)": {
        "vocab_size": 128_256,
        "width": 2048,
        "layers": 16,
        "heads": 32,
        "kv_heads": 8,
        "mlp_width": 8192,
        "tie_embeddings": True,
    },
    "8B (Llama 3)": {
        "vocab_size": 128_256,
        "width": 4096,
        "layers": 32,
        "heads": 32,
        "kv_heads": 8,
        "mlp_width": 14_336,
    },
}


def optimizers(vocab_size: int) -> dict[str, optax.GradientTransformation]:
    """Returns optimizers of a whole model; their rates do not matter here."""

    def ember(body: optax.GradientTransformation) -> optax.GradientTransformation:
        return ember_optax.with_ember(
            body,
            embed_learning_rate=1.0,
            head_learning_rate=1.0,
            vocab_size=vocab_size,
        )

    def labels(params: Any) -> Any:
        return ember_optax.label_token_tables(params, vocab_size=vocab_size)

    adamw, muon = optax.adamw(1.0), optax.contrib.muon(1.0)
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=1)
    return {
        "AdamW": adamw,
        "Adafactor": optax.adafactor(1.0),
        "AdamW, factored RMS on the tables": optax.multi_transform(
            {"table": factored, "body": adamw}, labels
        ),
        "AdamW, Ember on the tables": ember(adamw),
        "Muon, Adam on the tables": optax.multi_transform(
            {"table": optax.adam(1.0), "body": muon}, labels
        ),
        "Muon, Ember on the tables": ember(muon),
    }


def shapes(sizes: dict[str, Any]) -> Any:
    """Returns the parameters of a model as shapes."""
    model = nnx.eval_shape(lambda: Decoder(**sizes, scan_layers=True, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    # Muon is for matrices, so the layers must not be stacked.
    layer = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params["layers"]
    )
    return params | {"layers": [layer] * sizes["layers"]}


def measure(sizes: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the bytes by optimizer, on one chip and on each of `CHIPS`."""
    params, found = shapes(sizes), {}
    both = 2 * optax.tree.size(params) * 4
    for name, tx in optimizers(sizes["vocab_size"]).items():
        leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
        state = sum(x.size * x.dtype.itemsize for x in leaves)
        # Vectors are replicated, matrices sharded.
        vectors = sum(x.size * x.dtype.itemsize for x in leaves if x.ndim < 2)
        shard = vectors + (state - vectors) / CHIPS
        found[name] = {
            "state": state,
            "with weights and gradients": both + state,
            f"state on each of {CHIPS} chips": shard,
            "all on each": both / CHIPS + shard,
        }
    return found


def main() -> None:
    measured = {title: measure(sizes) for title, sizes in MODELS.items()}
    store.write_object(MEMORY, {"measured": measured})
    print(f"Wrote {MEMORY}")


if __name__ == "__main__":
    main()
