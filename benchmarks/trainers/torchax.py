"""Hugging Face's Llama in PyTorch, trained by torchax on 2 x 2 devices."""

# pyright takes this file for the package.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import torch
import transformers
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from torchax import interop
from torchax.train import ScannedModule

import ember_optax
from benchmarks.trainers import checks, text
from examples.trainers import torchax as plug_in

PACKAGE = "torchax"
TINY = {
    "vocab_size": text.VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "use_cache": False,
}


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY))


def optimizer(name: str) -> optax.GradientTransformation:
    if name == "ember":
        return plug_in.make_optimizer(*checks.SCHEDULES)
    adamw = optax.adamw(checks.SCHEDULES[0])
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def loss_fn(output: Any, labels: torch.Tensor) -> torch.Tensor:
    logits = output.logits.flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels.flatten().long())


def shardings(mesh: jax.sharding.Mesh, weights: dict[str, Any]) -> dict[str, Any]:
    """Shards the matrices over both axes."""
    return {
        name: NamedSharding(mesh, P(*("model", "data")[: 2 * (x.ndim > 1)]))
        for name, x in weights.items()
    }


def train(
    name: str, workdir: Path, made: torch.nn.Module | None = None
) -> checks.Trained:
    tx = optimizer(name)
    step, weights, buffers, opt_state = plug_in.prepare(made or model(), loss_fn, tx)
    weights = interop.jax_view(weights)
    mesh = jax.sharding.get_mesh()
    layout = shardings(mesh, weights)
    state = {"weights": weights, "opt_state": interop.jax_view(opt_state)}
    state = jax.device_put(
        state,
        {
            "weights": layout,
            "opt_state": ember_optax.opt_state_shardings(tx, weights, layout),
        },
    )
    losses = []
    with text.checkpoints(workdir) as manager:
        last = manager.latest_step() or 0
        if last:
            state = manager.restore(last, args=ocp.args.StandardRestore(state))
        weights, opt_state = interop.torch_view((state["weights"], state["opt_state"]))
        rows = NamedSharding(mesh, P("data"))
        for number, batch in enumerate(text.batches()[last:], start=last + 1):
            inputs, labels = interop.torch_view(
                jax.device_put((batch[:, :-1], batch[:, 1:]), rows)
            )
            loss, weights, opt_state = step(
                weights, buffers, opt_state, (inputs,), labels
            )
            losses.append(float(loss.jax()))
            state = interop.jax_view({"weights": weights, "opt_state": opt_state})
            manager.save(number, args=ocp.args.StandardSave(state))
    return checks.Trained(losses, state["weights"], state["opt_state"])


def run(workdir: Path) -> dict[str, Any]:
    with jax.set_mesh(text.mesh(2, 2)):
        result = checks.compare(train, drop_after, workdir, text.VOCAB_SIZE)
        frozen = model()
        frozen.model.embed_tokens.requires_grad_(False)
        only_head = train("ember", workdir / "frozen", frozen)
        checks.check_falls("a frozen embedding", only_head.losses)
        checks.check_tables(only_head.opt_state, "lm_head.weight")
        frozen = model()
        frozen.model.embed_tokens.requires_grad_(False)
        frozen.lm_head.requires_grad_(False)
        body = train("ember", workdir / "body", frozen)
        checks.check_only_adamw(body.opt_state)
    also = ["frozen embedding", "frozen tables: AdamW alone"]
    return result | {"also": also, "families": checks.check_families(build, MODELS)}


VOCAB_SIZE = 4099  # of the models below: the size of nothing else
NUMBERS = TINY | {"vocab_size": VOCAB_SIZE, "pad_token_id": 0}
SCANNED = "llama with ScannedModule"
MODELS = [
    SCANNED,
    *"""
    bert bloom cohere cohere2 falcon gemma gemma2 gemma3_text glm gpt2 gpt_neox gptj
    granite llama mistral mixtral mpt olmo olmo2 opt phi phi3 qwen2 qwen2_moe qwen3
    qwen3_moe roberta smollm3 stablelm starcoder2
    """.split(),
]


def build(name: str) -> tuple[Any, int]:
    """Returns the shapes of a tiny model."""
    config = transformers.AutoConfig.for_model(name.split()[0], **NUMBERS)
    made = transformers.AutoModelForCausalLM.from_config(config)
    if name == SCANNED:
        made.model.layers = ScannedModule(list(made.model.layers))
    trained = interop.JittableModule(made).params
    return {
        path: jax.ShapeDtypeStruct(tuple(x.shape), jnp.float32)
        for path, x in trained.items()
    }, VOCAB_SIZE


def drop_after(workdir: Path) -> None:
    shutil.rmtree(workdir / str(checks.STEPS))
