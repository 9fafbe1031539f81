"""Reinforcement learning of SmolLM2-135M-Instruct: minutes on two cores.

`configs/grpo_accelerator.py` has the sizes of a comparison.
"""

from ml_collections import ConfigDict

from configs.finetune_smollm2 import optimizer


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seeds = (0,)  # one run each, of the questions and the sampling

    # A directory in Hugging Face's layout.
    config.model = ".cache/smollm2-135m-instruct"

    config.largest_number = 50  # in the sums
    config.prompts = 4  # in a step
    config.answers = 4  # sampled to each prompt
    config.answer_tokens = 12  # of an answer, at most
    config.temperature = 1.0
    config.beta = 0.0  # penalty on the distance from the initial model
    config.held_out = 32  # questions before and after, with the likeliest answers

    config.optimizer = optimizer(steps=15)
    config.optimizer.update(learning_rate=1e-5, warmup_steps=1, final_fraction=1.0)

    config.workdir = "runs/grpo"
    config.overwrite = False  # delete the earlier run in workdir
    return config
