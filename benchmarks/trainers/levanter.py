"""Levanter's Trainer on real text, FSDP over four devices."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import haliax as hax  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpy as np
from levanter.adaptor import (  # pyright: ignore[reportMissingImports]
    LoraAdaptorConfig,
)
from levanter.checkpoint import (  # pyright: ignore[reportMissingImports]
    CheckpointerConfig,
)
from levanter.layers.attention import (  # pyright: ignore[reportMissingImports]
    AttentionMask,
)
from levanter.models.llama import LlamaConfig  # pyright: ignore[reportMissingImports]
from levanter.models.lm_model import (  # pyright: ignore[reportMissingImports]
    LmConfig,
    LmExample,
)
from levanter.optim.config import AdamConfig  # pyright: ignore[reportMissingImports]
from levanter.optim.skipstep import (  # pyright: ignore[reportMissingImports]
    SkipStepConfig,
)
from levanter.tracker import NoopConfig  # pyright: ignore[reportMissingImports]
from levanter.trainer import (  # pyright: ignore[reportMissingImports]
    Trainer,
    TrainerConfig,
)
from levanter.utils.mesh import MeshConfig  # pyright: ignore[reportMissingImports]

from benchmarks.trainers import checks, text
from benchmarks.trainers.checks import EMBED_RATE, HEAD_RATE, LEARNING_RATE, STEPS
from examples.trainers import levanter as plug_in

PACKAGE = "marin-levanter"
VOCAB = hax.Axis("vocab", text.VOCAB_SIZE)
TINY = LlamaConfig(
    max_seq_len=text.TIME + 1,
    hidden_dim=64,
    intermediate_dim=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
)
MODELS = """
    apertus gemma gemma2 gemma3 gpt2 gpt2_hyena llama mistral mixtral modernbert olmo2
    olmo3 qwen qwen3 qwen3_moe snowball whisper
""".split()
OPTIMIZERS = {
    "adamw": AdamConfig(learning_rate=LEARNING_RATE),
    "ember": plug_in.EmberConfig(
        learning_rate=LEARNING_RATE,
        embed_learning_rate=EMBED_RATE,
        head_learning_rate=HEAD_RATE,
    ),
    "ember_low": plug_in.EmberConfig(  # with AdamW's rate on the tables
        learning_rate=LEARNING_RATE,
        embed_learning_rate=LEARNING_RATE,
        head_learning_rate=LEARNING_RATE,
    ),
    "ember_skip": plug_in.EmberConfig(  # all steps are bad after the first two
        learning_rate=LEARNING_RATE,
        skip_bad_steps=SkipStepConfig(rolling_interval_length=4, sigma_factor=-1e9),
    ),
}
LORA = LoraAdaptorConfig(target_modules=["q_proj", "gate_proj"], r=2)


def tiny() -> Any:
    return TINY.build(VOCAB, key=jax.random.PRNGKey(0))


def with_factors() -> Any:
    return LORA.apply(tiny(), key=jax.random.PRNGKey(2))


def all_but_embedding(model: Any) -> Any:
    """Returns the filter of trained parameters, as Levanter expects it."""
    everything = hax.tree_util.tree_map(lambda _: True, model)
    return eqx.tree_at(lambda tree: tree.embeddings, everything, False)


def train(
    name: str,
    workdir: Path,
    make: Callable[[], Any] = tiny,
    trained: Callable[[Any], Any] | None = None,
    batches: np.ndarray | None = None,
    from_adam: Path | None = None,
) -> checks.Trained:
    """Trains; with `from_adam`, resumes from the last checkpoint of that folder."""
    losses: dict[int, float] = {}  # the last step calls hooks twice
    batches = text.batches() if batches is None else batches
    with trainer(name, workdir) as loop:
        if from_adam is None:
            state = initial(loop, make, trained)
        else:
            with trainer("adamw", from_adam) as old:
                state = initial(old, make, trained)
            beta2 = OPTIMIZERS["adamw"].beta2
            state = plug_in.switch(state, loop.optimizer, beta2)
        loop.add_hook(
            lambda info: losses.update({info.step: float(info.loss)}), every=1
        )
        data = (example(loop, tokens) for tokens in batches[int(state.step) :])
        state = loop.train(state, data).state
    return checks.Trained(list(losses.values()), state.model, state.opt_state)


def trainer(name: str, workdir: Path) -> Trainer:
    config = TrainerConfig(
        id="run",
        tracker=NoopConfig(),
        require_accelerator=False,
        train_batch_size=text.BATCH,
        num_train_steps=STEPS,
        mesh=MeshConfig(param_mapping={"embed": "data"}),
        log_jaxprs=False,
        log_xla_hlo=False,
        checkpointer=CheckpointerConfig(
            base_path=str(workdir), save_interval=None, keep=[{"every": checks.SAVED}]
        ),
    )
    return Trainer(
        config,
        OPTIMIZERS[name].build(STEPS),
        lambda model, example, *, key=None: model.compute_next_token_loss(
            example, key=key
        ),
    )


def initial(
    loop: Trainer,
    make: Callable[[], Any],
    trained: Callable[[Any], Any] | None,
) -> Any:
    return loop.initial_state(
        jax.random.PRNGKey(1),
        model_init=make,
        is_trainable=trained(eqx.filter_eval_shape(make)) if trained else True,
    )


def example(loop: Trainer, tokens: Any) -> Any:
    named = hax.named(jnp.asarray(tokens), (loop.TrainBatch, TINY.max_Pos))
    weight = hax.ones(named.axes).at[TINY.max_Pos, -1].set(0)
    whole = LmExample(
        tokens=named, loss_weight=weight, attn_mask=AttentionMask.causal()
    )
    return hax.shard(whole, loop.compute_axis_mapping)


def run(workdir: Path) -> dict[str, Any]:
    # Half of the runs compile the same programs as an earlier one.
    jax.config.update("jax_compilation_cache_dir", str(workdir / "cache"))
    result = checks.compare(train, drop_after, workdir, text.VOCAB_SIZE)
    drop_after(workdir / "adamw")
    losses = {
        name: train(name, workdir / f"to_{name}", from_adam=workdir / "adamw").losses
        for name in ("ember", "ember_low")
    }
    # At the rates of a fresh run the first step is too large: recorded, not asserted.
    result["switch"] = checks.check_switch(
        result["losses"]["adamw"], losses["ember_low"]
    )
    result["switch"]["ember_fresh_rates"] = losses["ember"]
    check_parts(workdir)
    also = [
        "AdamW to Ember",
        "LoRA alone: AdamW",
        "frozen embedding",
        "skipped steps",
        "names of Marin's models",
    ]
    return result | {"also": also, "families": checks.check_families(build, MODELS)}


def check_parts(workdir: Path) -> None:
    """Raises unless LoRA, a frozen table and skipped steps do what they should."""
    factors = train("ember", workdir / "lora", with_factors, LORA.trainable_filter)
    checks.check_falls("factors of LoRA", factors.losses)
    checks.check_only_adamw(factors.opt_state)

    frozen = train("ember", workdir / "frozen", trained=all_but_embedding)
    checks.check_falls("a frozen embedding", frozen.losses)
    checks.check_tables(frozen.opt_state, "lm_head/weight/0")

    # As in the models of Marin.
    names = {"token_embed": (512, 64), "output_proj": (64, 512), "mlp": (64, 128)}
    params = {name: jnp.ones(shape) for name, shape in names.items()}
    config = dataclasses.replace(OPTIMIZERS["ember"], vocab_size=512)
    state = config.build(STEPS).init(params)
    checks.check_tables(state, "token_embed", "output_proj")

    same = np.repeat(text.batches()[:1], STEPS, axis=0)
    skipped = train("ember_skip", workdir / "skip", batches=same).losses
    if not skipped[0] > skipped[2] or set(skipped[2:]) != {skipped[2]}:
        raise AssertionError(f"Skipped steps change the model: {skipped}.")


def build(name: str) -> tuple[Any, int]:
    """Returns the shapes of a model in its default size."""
    vocab = hax.Axis("vocab", 50_261)  # the size of nothing else
    config = LmConfig.get_choice_class(name)()
    model = eqx.filter_eval_shape(config.build, vocab, key=jax.random.PRNGKey(0))
    is_shape = eqx.filter(model, lambda x: hasattr(x, "shape") and hasattr(x, "dtype"))
    # Only Whisper uses the size in its configuration.
    return is_shape, config.vocab_size if name == "whisper" else vocab.size


def drop_after(workdir: Path) -> None:
    for folder in (workdir / "run").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > checks.SAVED:
            shutil.rmtree(folder)
