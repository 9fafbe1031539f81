"""GRPO on sorting numbers, after a short supervised phase: minutes on two cores.

Every value can be set on the command line: --config.rl.steps=500.
The tuned values come from benchmarks/post_training/grpo.jsonl.
"""

from ml_collections import ConfigDict

from examples.post_training.phases import phase, tiny_qwen3


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the initial values, the prompts and the samples

    # A prompt is this many numbers from 0 up; each number is one token.
    config.numbers = 100
    config.length = 3
    config.held_out = 512  # prompts to evaluate on

    config.batch_sizes = (4, 16, 64)  # prompts in a step of GRPO, with --compare

    config.model = tiny_qwen3()

    # All arms start from the same model, trained with AdamW on the tables.
    config.supervised = phase(
        steps=80,
        batch_size=64,
        table_learning_rates={"ember": (1e-2, 1e-2), "adam": (1e-2, 1e-2)},
        body_learning_rate=2e-3,
        tables="adam",
    )
    config.rl = phase(
        steps=300,
        batch_size=16,  # prompts
        table_learning_rates={"ember": (1e-3, 3e-3), "adam": (1e-3, 3e-3)},
        body_learning_rate=1e-3,  # 3e-3 is better with 16 prompts and more
    )
    config.rl.generations = 8  # answers to each prompt, compared with each other
    config.rl.temperature = 1.0
    config.rl.beta = 0.0  # weight of the divergence from the supervised model

    config.tensorboard = False  # metrics in workdir/*/tensorboard

    # Of the run. To be in the directory of an earlier one, delete that.
    config.workdir = "runs/grpo_small"
    config.overwrite = False
    return config
