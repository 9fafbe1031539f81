"""A small Qwen3 of tunix."""

# pyright: reportMissingImports=false

import jax
from flax import nnx
from tunix.models.qwen3.model import ModelConfig, Qwen3


def make_model(config: dict[str, int], vocab_size: int, seed: int) -> Qwen3:
    """Makes a model with random parameters.

    Args:
      config: fields of tunix's `ModelConfig`.
      vocab_size: rows of the token tables.
      seed: of the parameters.
    """
    rngs = nnx.Rngs(seed)
    model = Qwen3(ModelConfig(vocab_size=vocab_size, **config), rngs=rngs)
    # tunix expects weights to be loaded: its MLPs are all zeros, which no gradient
    # ever moves.
    init = jax.nn.initializers.lecun_normal()
    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Linear):
            module.kernel[...] = init(rngs.params(), module.kernel.shape)
    return model
