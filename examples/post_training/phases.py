"""Settings that the programs for post-training share: a phase, and a model."""

from collections.abc import Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# In benchmarks/post_training better for Ember than Adafactor's decay, or as good.
_DECAYS = {"ember": {"b2": 0.999}, "adam": {"b1": 0.9, "b2": 0.999}}


def phase(
    steps: int,
    batch_size: int,
    table_learning_rates: Mapping[str, tuple[float, float]],
    body_learning_rate: float,
    tables: str = "ember",
) -> ConfigDict:
    """Returns what `examples.lm.optimizer.make_optimizer` needs, and a batch size.

    Args:
      steps: updates of the parameters.
      batch_size: sequences or prompts in each.
      table_learning_rates: the tuned ones of each table optimizer, of the embedding
        and of the head.
      body_learning_rate: of AdamW on everything else.
      tables: which table optimizer to use.
    """
    config = ConfigDict({"steps": steps, "batch_size": batch_size})
    config.tables = ConfigDict({"optimizer": tables, "weight_decay": 0.0})
    config.tables.embed_learning_rate = placeholder(float)  # by default the tuned one
    config.tables.head_learning_rate = placeholder(float)  # likewise
    config.tables.b2 = placeholder(float)  # likewise
    config.tables.defaults = ConfigDict(
        {
            name: {"embed": embed, "head": head, **_DECAYS[name]}
            for name, (embed, head) in table_learning_rates.items()
        }
    )
    config.body = ConfigDict({"optimizer": "adamw", "weight_decay": 0.0})
    config.body.learning_rate = placeholder(float)  # by default the tuned one
    config.body.defaults = ConfigDict({"adamw": body_learning_rate})
    config.warmup_ratio = 0.1  # of the steps
    config.final_lr_ratio = 0.1  # of the peak
    config.clip_norm = 1.0  # of the gradient of tables and body together
    return config


def tiny_qwen3() -> ConfigDict:
    """Returns fields of tunix's ModelConfig for Qwen3."""
    return ConfigDict(
        {
            "num_layers": 2,
            "embed_dim": 64,
            "hidden_dim": 192,
            "num_heads": 4,
            "head_dim": 16,
            "num_kv_heads": 2,
            "rope_theta": 10_000,
            "norm_eps": 1e-6,
            "use_tied_embedding": False,
        }
    )
