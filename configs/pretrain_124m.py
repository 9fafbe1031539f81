"""GPT-2 small's size, 124 million parameters, on one host of GPUs or TPUs.

The learning rates of Ember, Adam and the body follow those of the small config by a
rule for the width: sweep them at this size.
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
            # Those of the small config times sqrt(96 / 768), a common rule;
            # not measured at this size.
            "tables": {
                "defaults": {
                    "ember": {"embed": 0.2, "head": 0.011},
                    "adam": {"embed": 0.35, "head": 0.011},
                }
            },
            "body": {"defaults": {"adamw": 0.0014, "muon": 0.0028}},
            "loss_chunks": 8,
            "eval_every": 250,
            "checkpoint_every": 500,
            "workdir": "runs/pretrain_124m",
        }
    )
    return config
