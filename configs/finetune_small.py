"""Full finetuning of a small model on instructions: minutes on two cores.

Every value can be set on the command line: --config.finetuning.steps=1000.
The tuned values come from benchmarks/post_training/finetune.jsonl.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from examples.post_training.phases import phase, tiny_qwen3


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the initial values and of the order of the batches
    config.sequence_length = 48  # tokens of prompt and answer

    # Tokens to pretrain on and their tokenizer, see configs/pretrain_small.py.
    config.data = ConfigDict()
    config.data.path = ".cache/stdlib/train/*.bin"
    config.data.validation_path = ".cache/stdlib/validation/*.bin"
    config.data.tokenizer = ".cache/stdlib/tokenizer.json"

    # JSON Lines with "prompt" and "completion". By default the functions of Python's
    # standard library: the signature by the first line of the docstring.
    config.tasks = placeholder(str)

    # Directory of tunix checkpoints to start from, such as runs/mine/pretrained, with
    # the same model and data. By default a model is pretrained first.
    config.checkpoint = placeholder(str)

    config.model = tiny_qwen3()

    # All arms start from the same model, trained with AdamW on the tables.
    config.pretraining = phase(
        steps=300,
        batch_size=8,
        table_learning_rates={"ember": (1e-2, 1e-2), "adam": (1e-2, 1e-2)},
        body_learning_rate=2e-3,
        tables="adam",
    )
    config.finetuning = phase(
        steps=200,
        batch_size=8,
        table_learning_rates={"ember": (1e-2, 1e-2), "adam": (3e-3, 1e-2)},
        body_learning_rate=1e-3,
    )
    config.eval_every = 50  # steps
    config.eval_batches = 16
    config.tensorboard = False  # metrics in workdir/*/tensorboard

    # Of the run. In the directory of an earlier one, choose: resume that, or delete it.
    config.workdir = "runs/finetune_small"
    config.resume = False
    config.overwrite = False
    return config
