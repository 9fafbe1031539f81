"""A small language model on real text: one minute on two cores, twice to compare.

Every value can be set on the command line: --config.steps=1000.
This is the main setting of benchmarks/study, which tuned the learning rates.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.seed = 0  # for the initial values and the order of the batches
    config.steps = 256
    config.batch_size = 16  # sequences
    config.accumulate_steps = 1  # parts of a batch, one at a time in memory
    config.sequence_length = 64  # tokens

    # Files of token ids that examples.tools.tokenize_shards or other tools have made:
    # paths and globs with commas, local or gs://. `make pretrain` makes these.
    config.data = ConfigDict()
    config.data.path = ".cache/stdlib/train/*.bin"
    config.data.weights = ()  # of the parts of path in a batch; by default their sizes
    config.data.validation_path = ".cache/stdlib/validation/*.bin"
    # tokenizer.json or a SentencePiece .model, or only the size of the vocabulary.
    config.data.tokenizer = ".cache/stdlib/tokenizer.json"
    config.data.vocab_size = placeholder(int)
    config.data.dtype = placeholder(str)  # of files without a header, such as "uint32"

    config.model = ConfigDict()
    config.model.width = 96
    config.model.layers = 2
    config.model.heads = 4
    config.model.mlp_width = 288
    config.model.kv_heads = placeholder(int)  # by default as many as heads
    config.model.rope_base = 1e4
    config.model.tie_embeddings = False  # one table for embedding and head
    config.model.qk_norm = False
    config.model.embed_norm = True  # RMSNorm after the embedding
    # Standard deviation of initial values; by default 1, and 0.02 for a tied table.
    config.model.embed_init = placeholder(float)
    config.model.head_init = 0.0
    config.model.pad_vocab_to_multiple_of = 128  # rows of the tables
    config.model.scan_layers = False  # a deep model compiles faster
    config.model.remat = "none"  # or "dots" or "full": saves memory, costs time
    config.model.attention = "auto"  # or "plain", "splash" (TPUs), "cudnn" (GPUs)
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
    # ember, adam, adafactor or sgd.
    config.tables.optimizer = "ember"
    # By default the optimizer's entry in `defaults`, scaled to the model's width.
    config.tables.embed_learning_rate = placeholder(float)
    config.tables.head_learning_rate = placeholder(float)  # also for a tied table
    config.tables.b2 = placeholder(float)
    config.tables.weight_decay = 0.0
    # Learning rates of embedding and head at width 96; examples/lm/optimizer.py has the
    # rule for others. The study has tuned those of ember and adam as pairs; the others
    # are guesses to start from. Adafactor's are relative to the size of the parameters.
    config.tables.defaults = ConfigDict(
        {
            # None is the growing decay of Adafactor.
            "ember": {"embed": 1.0, "head": 0.032, "b2": None},
            # nanochat's b1 and b2 for token tables.
            "adam": {"embed": 1.8, "head": 0.056, "b1": 0.8, "b2": 0.95},
            "adafactor": {"embed": 1.0, "head": 0.32},
            "sgd": {"embed": 10.0, "head": 10.0},
        }
    )

    # Everything else.
    config.body = ConfigDict()
    config.body.optimizer = "adamw"  # or muon
    config.body.learning_rate = placeholder(float)  # by default that in `defaults`
    config.body.weight_decay = 0.1  # of matrices
    config.body.defaults = ConfigDict({"adamw": 4e-3, "muon": 8e-3})

    # All learning rates warm up linearly, then fall along a cosine.
    config.warmup_ratio = 0.1  # of the steps
    config.final_lr_ratio = 0.1  # of the peak
    # Largest norm of the gradient of tables and body together; None does not clip.
    config.clip_norm = 1.0

    config.log_every = 10  # steps
    config.eval_every = 32  # steps
    config.eval_batches = 32
    config.checkpoint_every = 64  # steps
    config.keep_checkpoints = 2
    config.tensorboard = False  # metrics in workdir/*/tensorboard; docs/monitoring.md

    # Compile one step for a TPU slice such as v5p:4x4x4, and print its cost.
    config.cost_report_topology = placeholder(str)

    # Output directory, local, mounted or gs://. If it already contains a run, set
    # resume or overwrite.
    config.workdir = "runs/pretrain_small"
    config.resume = False
    config.overwrite = False
    return config
