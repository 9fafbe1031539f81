"""The shape of Llama 3 8B, for 256 chips of v5p.

    python -m examples.pretrain --config=configs/pretrain_8b_pod.py \\
        --config.data.path='/mnt/texts/*.jsonl' --config.workdir=/mnt/runs/8b

Without a TPU, --config.compile_topology=v5p:8x8x4 says what a step costs each chip.
The learning rates of Ember, Adam and the body follow those of the small config by a
rule for the width: sweep them at this size.
"""

from ml_collections import ConfigDict

from configs import pretrain_small


def get_config() -> ConfigDict:
    config = pretrain_small.get_config()
    config.update(
        {
            "steps": 100_000,
            "batch_size": 512,
            "sequence_length": 4096,
            "data": {"vocab_size": 128_256},
            "model": {
                "width": 4096,
                "layers": 32,
                "heads": 32,
                "kv_heads": 8,
                "mlp_width": 14_336,
                "rope_base": 5e5,
                "scan": True,
                "remat": "full",
                "dtype": "bfloat16",
            },
            # Those of the small config times sqrt(96 / 4096), the rule of practice;
            # not measured at this size.
            "tables": {
                "tuned": {
                    "ember": {"embed": 0.086, "head": 0.0049},
                    "adam": {"embed": 0.15, "head": 0.0049},
                }
            },
            "body": {"tuned": {"adamw": 0.00061, "muon": 0.0012}},
            "loss_chunks": 16,
            "mesh": {"data": 1, "fsdp": -1, "tensor": 4},
            "eval_every": 500,
            "checkpoint_every": 500,
            "workdir": "runs/pretrain_8b_pod",
        }
    )
    return config
