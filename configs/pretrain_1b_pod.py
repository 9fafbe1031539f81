"""1.5 billion parameters, two tables of 131,072 tokens, for 64 chips of v5p.

    python -m examples.pretrain --config=configs/pretrain_1b_pod.py \\
        --config.data.path='gs://my-bucket/tokens/train/*.bin' \\
        --config.workdir=gs://my-bucket/runs/1b --config.resume

Without a TPU, --config.cost_report_topology=v5p:4x4x4 prints the cost of a step.
The learning rates of Ember, Adam and the body follow those of the small config by a
rule for the width: sweep them at this size.
"""

from ml_collections import ConfigDict

from configs import pretrain_small


def get_config() -> ConfigDict:
    config = pretrain_small.get_config()
    config.update(
        {
            "steps": 50_000,
            "batch_size": 512,
            "sequence_length": 2048,
            # Give the token files, and a tokenizer or the size of its vocabulary.
            "data": {
                "path": "",
                "validation_path": "",
                "tokenizer": "",
                "vocab_size": 131_072,
            },
            "model": {
                "width": 2048,
                "layers": 16,
                "heads": 16,
                "kv_heads": 8,
                "mlp_width": 8192,
                "rope_base": 5e5,
                "scan_layers": True,
                "remat": "full",
                "dtype": "bfloat16",
            },
            # Those of the small config times sqrt(96 / 2048), a common rule;
            # not measured at this size.
            "tables": {
                "defaults": {
                    "ember": {"embed": 0.12, "head": 0.0069},
                    "adam": {"embed": 0.22, "head": 0.0069},
                }
            },
            "body": {"defaults": {"adamw": 0.00087, "muon": 0.0017}},
            "loss_chunks": 8,
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
            "eval_every": 500,
            "checkpoint_every": 500,
            "workdir": "runs/pretrain_1b_pod",
        }
    )
    return config
