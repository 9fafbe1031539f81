"""Finetuning of SmolLM2-135M-Instruct, or of your own model: minutes on two cores.

Every value can be set on the command line: --config.optimizer.steps=1000.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the order of the data

    # A directory in Hugging Face's layout.
    config.model = ".cache/smollm2-135m-instruct"

    # JSON Lines or Parquet with `messages`, or `prompt` and `completion`. By default
    # functions of Python's standard library: the signature by the docstring.
    config.data = placeholder(str)
    config.held_out = 64  # conversations to evaluate on, from the end of the data
    config.plain_text = placeholder(str)  # for forgetting; by default Python's manual
    config.question = "What is the capital of France?"  # also asked, for forgetting
    config.answer_tokens = 24  # of the answers that are shown

    config.sequence_length = 224  # tokens of a row, which packs several conversations
    config.batch_size = 2  # rows in a step

    config.optimizer = optimizer(steps=40)

    config.checkpoint_every = 0  # steps, for --config.resume; 0: only the final model
    config.tensorboard = False  # metrics in workdir/*/tensorboard; docs/monitoring.md
    config.workdir = "runs/finetune"
    config.resume = False  # continue from the last checkpoint in workdir
    config.overwrite = False  # delete the earlier run in workdir
    return config


def optimizer(steps: int) -> ConfigDict:
    return ConfigDict(
        {
            "tables": "ember",  # or "adamw", on the tables too
            "steps": steps,
            "learning_rate": 1e-4,  # of the body's AdamW
            # By default the body's rate, and at most 0.001 of the table's root mean
            # square. A tied table is a head.
            "embed_learning_rate": placeholder(float),
            "head_learning_rate": placeholder(float),
            "weight_decay": 0.0,  # of AdamW's matrices
            "max_norm": 1.0,  # of all gradients together
            "warmup_steps": 4,
            "final_fraction": 0.1,  # of the learning rates, after a cosine
        }
    )
