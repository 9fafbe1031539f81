"""Parts of finetune.py and grpo.py."""
