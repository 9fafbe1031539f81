"""A small language model on real text: one minute on two cores, twice to compare.

Every value can be set on the command line: --config.steps=1000, --config.model.tied.
This is the main setting of benchmarks/study, where the tuned values come from.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.seed = 0  # of the initial values and of the order of the batches
    config.steps = 256
    config.batch_size = 16  # sequences
    config.sequence_length = 64  # tokens

    config.data = ConfigDict()
    # Files, directories and globs, separated by commas: text, or JSON Lines with the
    # field "text", in UTF-8, and .gz of both. By default the source of Python's
    # standard library.
    config.data.path = placeholder(str)
    config.data.vocab_size = 4096
    config.data.validation_fraction = 0.05  # of the documents
    config.data.split_seed = 0
    config.data.cache_dir = ".cache"

    config.model = ConfigDict()
    config.model.width = 96
    config.model.layers = 2
    config.model.heads = 4
    config.model.mlp_width = 288
    config.model.kv_heads = placeholder(int)  # by default as many as heads
    config.model.rope_base = 1e4
    config.model.tied = False  # one table for embedding and head
    config.model.vocab_multiple = 128  # rows of the tables are padded to a multiple
    config.model.scan = False  # over the blocks: a deep model compiles faster
    config.model.remat = "none"  # or "dots" or "full": saves memory, costs time
    config.model.dtype = "float32"  # or "bfloat16": to compute in, not of parameters
    config.loss_chunks = 1  # parts of a sequence whose logits are in memory at a time

    # Devices along each axis of the mesh, -1 for all that remain.
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    # Mesh axes that each logical axis is sharded over: several with commas, or none.
    config.axis_rules = ConfigDict(
        {
            "batch": "data,fsdp",
            "vocab": "tensor",  # rows of the token tables
            "table_width": "fsdp",  # columns of the token tables
            "logits": "tensor",  # the vocabulary's axis in them
            "embed": "fsdp",
            "heads": "tensor",
            "mlp": "tensor",
            "layers": "",
            "norm": "",
        }
    )

    # Token tables: embed and lm_head.
    config.tables = ConfigDict()
    # ember, adam, adam_no_momentum, adafactor, sm3 or sgd.
    config.tables.optimizer = "ember"
    config.tables.embed_learning_rate = placeholder(float)  # by default the tuned one
    config.tables.head_learning_rate = placeholder(float)  # likewise, and of tied ones
    config.tables.b2 = placeholder(float)  # likewise
    config.tables.weight_decay = 0.0
    # Learning rates of embedding and head. The study has tuned those of ember and adam
    # as pairs; the others are guesses to start from. Adafactor's are relative to the
    # size of the parameters.
    config.tables.tuned = ConfigDict(
        {
            # None is the growing decay of Adafactor.
            "ember": {"embed": 0.56, "head": 0.032, "b2": None},
            # b1 and b2 are those of practice for token tables.
            "adam": {"embed": 1.0, "head": 0.032, "b1": 0.8, "b2": 0.95},
            "adam_no_momentum": {"embed": 0.56, "head": 0.032, "b2": 0.999},
            "adafactor": {"embed": 1.0, "head": 0.32},
            "sm3": {"embed": 1.0, "head": 0.1},
            "sgd": {"embed": 10.0, "head": 10.0},
        }
    )

    # Everything else.
    config.body = ConfigDict()
    config.body.optimizer = "adamw"  # or muon
    config.body.learning_rate = placeholder(float)  # by default the tuned one
    config.body.weight_decay = 0.1  # of matrices
    config.body.tuned = ConfigDict({"adamw": 4e-3, "muon": 8e-3})

    # All learning rates warm up linearly, then fall along a cosine.
    config.warmup_fraction = 0.1  # of the steps
    config.final_fraction = 0.1  # of the peak
    config.clip_norm = 1.0  # of the gradient of tables and body together

    config.eval_every = 32  # steps
    config.eval_batches = 32
    config.checkpoint_every = 64  # steps
    config.keep_checkpoints = 2
    config.tensorboard = False  # metrics in workdir/*/tensorboard too, beside the JSON

    # Compile a step for a TPU pod such as v5p:4x4x4, say what it costs, and end.
    config.compile_topology = placeholder(str)

    # Of the run. In the directory of an earlier one, choose: resume that, or delete it.
    config.workdir = "runs/pretrain_small"
    config.resume = False
    config.overwrite = False
    return config
