"""Ember against AdamW in reinforcement learning, at a size for one accelerator."""

from ml_collections import ConfigDict

from configs import grpo_smollm2


def get_config() -> ConfigDict:
    config = grpo_smollm2.get_config()
    config.seeds = (0, 1, 2)
    config.update(prompts=16, answers=8, answer_tokens=32, held_out=256)
    config.optimizer.update(steps=200, warmup_steps=10)
    config.workdir = "runs/grpo_accelerator"
    return config
