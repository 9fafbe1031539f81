"""1.5 billion parameters, two tables of 131,072 tokens, for 64 chips of v5p.

    python -m examples.pretrain --config=configs/pretrain_1b_pod.py \\
        --config.data.path='gs://my-bucket/tokens/train/*.bin' \\
        --config.workdir=gs://my-bucket/runs/1b --config.resume

Without a TPU, --config.cost_report_topology=v5p:4x4x4 prints the cost of a step.
The learning rates follow those of the small config by a rule for the width that was not
measured at this size: sweep them.
"""

from ml_collections import ConfigDict

from configs import pretrain_124m


def get_config() -> ConfigDict:
    config = pretrain_124m.get_config()
    config.update(
        {
            "steps": 50_000,
            "batch_size": 512,
            "sequence_length": 2048,
            "data": {"vocab_size": 131_072},
            "model": {
                "width": 2048,
                "layers": 16,
                "heads": 16,
                "kv_heads": 8,
                "mlp_width": 8192,
                "rope_base": 5e5,
                "tie_embeddings": False,
            },
            "eval_every": 500,
            "workdir": "runs/pretrain_1b_pod",
        }
    )
    return config
