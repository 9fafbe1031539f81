"""GPT-2 small's size, 124 million parameters, on one host of GPUs or TPUs.

The learning rates follow those of the small config by a rule for the width that was not
measured at this size: sweep them.
"""

from ml_collections import ConfigDict

from configs import pretrain_small


def get_config() -> ConfigDict:
    config = pretrain_small.get_config()
    config.update(
        {
            "steps": 10_000,
            "batch_size": 256,
            "sequence_length": 1024,
            # Give the token files, and a tokenizer or the size of its vocabulary.
            "data": {
                "path": "",
                "validation_path": "",
                "tokenizer": "",
                "vocab_size": 50_257,  # padded to 50,304
            },
            "model": {
                "width": 768,
                "layers": 12,
                "heads": 12,
                "mlp_width": 2048,
                "tie_embeddings": True,
                "scan_layers": True,
                "remat": "full",
                "dtype": "bfloat16",
            },
            "loss_chunks": 8,
            "eval_every": 250,
            "checkpoint_every": 500,
            "workdir": "runs/pretrain_124m",
        }
    )
    return config
