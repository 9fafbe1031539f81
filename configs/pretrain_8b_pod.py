"""The shape of Llama 3 8B, for 256 chips of v5p.

    python -m examples.pretrain --config=configs/pretrain_8b_pod.py \\
        --config.data.path='gs://my-bucket/tokens/train/*.bin' \\
        --config.workdir=gs://my-bucket/runs/8b --config.resume

Without a TPU, --config.cost_report_topology=v5p:8x8x4 prints the cost of a step.
The learning rates follow those of the small config by a rule for the width that was not
measured at this size: sweep them.
"""

from ml_collections import ConfigDict

from configs import pretrain_1b_pod


def get_config() -> ConfigDict:
    config = pretrain_1b_pod.get_config()
    config.update(
        {
            "steps": 100_000,
            "sequence_length": 4096,
            "data": {"vocab_size": 128_256},
            "model": {"width": 4096, "layers": 32, "heads": 32, "mlp_width": 14_336},
            "loss_chunks": 16,
            "mesh": {"tensor": 4},
            "workdir": "runs/pretrain_8b_pod",
        }
    )
    return config
