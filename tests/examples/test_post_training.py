"""Pretrained models through tunix: loading, saving, rates, finetuning and RL."""

import contextlib
import gzip
import inspect
import json
import os
import re
import warnings
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tunix")

import safetensors.numpy

SHARDS = "flax_always_shard_variable"  # tunix sets it, for every model in the process
shards = getattr(flax.config, SHARDS)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from benchmarks.post_training import data as benchmark_data
    from benchmarks.post_training import decoder, finetuning, new_tokens
    from benchmarks.post_training.plan import ADAMW, EMBER, FROZEN
    from configs import finetune_smollm2, grpo_smollm2
    from examples import finetune, grpo
    from examples.lm.errors import UserError
    from examples.post_training import chats, models, tasks, training
    from examples.post_training.optimizer import find_tables, table_rates
    from tests.examples.tiny_models import NUMBERS, write_model

flax.config.update(SHARDS, shards)

# tunix still uses flax's `.value` and optax's `global_norm`.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SMOLLM2 = Path(".cache/smollm2-135m-instruct")
FAQ = benchmark_data.DEBIAN / "usr/share/doc/debian/FAQ/debian-faq.en.txt.gz"


@pytest.fixture(autouse=True)
def tunix_settings():
    """Allows tunix its promotions, in its threads too."""
    settings = {"numpy_rank_promotion": "allow", "numpy_dtype_promotion": "standard"}
    before = {name: getattr(jax.config, f"jax_{name}") for name in settings}
    for name, value in settings.items():
        jax.config.update(f"jax_{name}", value)
    flax.config.update(SHARDS, False)
    yield
    flax.config.update(SHARDS, shards)
    for name, value in before.items():
        jax.config.update(f"jax_{name}", value)


@pytest.fixture
def tiny(tmp_path):
    return write_model(tmp_path / "tiny")


@pytest.fixture
def config(tmp_path, tiny):
    """The configuration of `make finetune`, tiny."""
    config = finetune_smollm2.get_config()
    config.update(model=str(tiny), workdir=str(tmp_path / "run"), held_out=4)
    config.update(sequence_length=96, question="Who?", answer_tokens=4)
    config.optimizer.update(steps=4, warmup_steps=1, learning_rate=1e-2)
    config.optimizer.head_learning_rate = 2e-4
    config.data = str(tmp_path / "data.jsonl")
    records = [{"prompt": f"Say {i}", "completion": f"{i}!"} for i in range(20)]
    Path(config.data).write_text("\n".join(map(json.dumps, records)))
    return config


def logits(model, tokens):
    n = tokens.shape[1]
    positions = jnp.tile(jnp.arange(n), (len(tokens), 1))
    mask = jnp.tile(jnp.tril(jnp.ones((n, n), bool)), (len(tokens), 1, 1))
    return model(tokens, positions, None, mask)[0]


TOKENS = np.arange(40, dtype=np.int32).reshape(2, 20)


@pytest.mark.parametrize("model_type", models.FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_model_is_loaded_and_saved_unchanged(tmp_path, model_type, tied):
    if model_type == "gemma3_text" and not tied:
        pytest.skip("Gemma ties its tables")
    source = write_model(tmp_path / "source", model_type, tie_word_embeddings=tied)
    pretrained = models.load(source)
    assert jnp.isfinite(logits(pretrained.model, TOKENS)).all()
    models.save(pretrained, pretrained.model, tmp_path / "copy")
    before, after = (
        safetensors.numpy.load_file(d / "model.safetensors")
        for d in (source, tmp_path / "copy")
    )
    assert before.keys() == after.keys()
    for name, x in before.items():
        np.testing.assert_array_equal(x, after[name], err_msg=name)
    assert {f.name for f in source.iterdir()} == {
        f.name for f in (tmp_path / "copy").iterdir()
    }
    tables = {t.role for t in find_tables(pretrained.model)}
    assert tables == ({"head"} if tied else {"embed", "head"})


def test_decoder_of_the_benchmark_equals_tunix(tiny):
    model = models.load(tiny).model
    places = np.tile(np.arange(19), (2, 1))
    losses = decoder.losses(*decoder.load(tiny), TOKENS, places)
    found = jax.nn.log_softmax(logits(model, TOKENS))[:, :-1]
    expected = -jnp.take_along_axis(found, TOKENS[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_tunix_still_ignores_rope_theta(tmp_path, model_type):
    """Fails when tunix mends it: then drop `models.set_rope`."""
    family = models.FAMILIES[model_type]
    original = inspect.unwrap(family.module.apply_rope)
    directory = write_model(tmp_path / "model", model_type, rope_theta=100.0)
    model = models.load(directory).model
    right = logits(model, TOKENS)
    ours = family.module.apply_rope
    try:
        family.module.apply_rope = original
        wrong = logits(model, TOKENS)
        models.set_rope(family.module, {"rope_theta": 1_000_000.0})
        million = logits(model, TOKENS)
    finally:
        family.module.apply_rope = ours
    np.testing.assert_allclose(wrong, million, rtol=1e-4, atol=1e-5)
    assert jnp.abs(right - wrong).max() > 1e-3


def test_long_context_scaling_of_llama():
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 64
    turns = np.array([10.0, 4.0, 2.5, 1.0, 0.1])
    frequencies = turns * 2 * np.pi / 64
    scaled = models.llama3_scaling(jnp.array(frequencies), rope)
    expected = [1, 1, 0.5 + 0.5 / 8, 1 / 8, 1 / 8]
    np.testing.assert_allclose(scaled / frequencies, expected, rtol=1e-5)


def write(name, text):
    return lambda directory: (directory / name).write_text(text)


def change(**numbers):
    def apply(directory):
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | numbers))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer.json: give"),
        (lambda d: (d / "model.safetensors").unlink(), "has no *.safetensors file"),
        (write("config.json", "{"), "config.json is not JSON"),
        (write("config.json", '{"model_type": "llama"}'), "json has no 'num_attention"),
        (change(model_type="mamba"), "is 'mamba', but the supported ones are llama"),
        (change(num_hidden_layers=3), "lack the tensor model.layers.2"),
        (change(hidden_size=64), "has the shape (520, 32), but config.json says (520"),
        (change(tie_word_embeddings=False), "lack the tensor lm_head.weight"),
        (change(rope_scaling={"rope_type": "yarn"}), "scaling 'yarn'"),
        (write("model.safetensors", "?"), "is damaged"),
        (write("tokenizer.json", "{}"), "tokenizer.json: "),
        (write("tokenizer_config.json", '{"eos_token": "x"}'), "has no chat template"),
    ],
)
def test_bad_directory_is_one_line(tiny, damage, message):
    damage(tiny)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        models.load(tiny)
    assert "\n" not in str(caught.value)


def test_rates_of_tables_are_guarded(tiny, capsys):
    tables = find_tables(models.load(tiny).model)
    (table,) = tables
    assert (table.path, table.role) == ("embedder/input_embedding", "head")
    config = finetune_smollm2.get_config().optimizer
    config.learning_rate = 5e-5
    assert table_rates(config, tables) == {"head": 5e-5}  # the body's
    config.learning_rate = 1e-2
    assert table_rates(config, tables)["head"] == pytest.approx(0.001 * table.rms)
    config.head_learning_rate = 0.0019 * table.rms
    assert table_rates(config, tables)["head"] == config.head_learning_rate
    assert capsys.readouterr().err == ""
    config.head_learning_rate = 0.009 * table.rms
    table_rates(config, tables)
    warning = r"head_learning_rate .* 0\.009 of the size .* safe\.\n"
    assert re.fullmatch(warning, capsys.readouterr().err)
    config.head_learning_rate = 0.011 * table.rms
    with pytest.raises(UserError, match=r"move all rows .* Use 0\.0001\."):
        table_rates(config, tables)


def test_packed_conversations_do_not_see_each_other(tiny):
    pretrained = models.load(tiny)
    messages = [chats.chat("Who?", "Me."), chats.chat("You?", "No, it is me.")]
    examples = [chats.encode(pretrained.tokenizer, m) for m in messages]
    together = [*training.in_batches(chats.pack(examples, 96), rows=1)]
    apart = [next(training.in_batches(chats.pack([e], 96), 1)) for e in examples]
    assert len(together) == 1
    assert training.evaluate(pretrained.model, together) == pytest.approx(
        training.evaluate(pretrained.model, apart), rel=1e-4
    )


def test_finetuning_in_both_arms_and_the_saved_model(config, capsys):
    config.tensorboard = True
    results = finetune.run(config, compare=True)
    assert set(results) == {"before", "ember", "adamw"}
    for name in ("ember", "adamw"):
        assert results[name].held_out < results["before"].held_out - 0.1
        saved = models.load(Path(config.workdir) / name / "model")
        data = finetune.load_data(config, saved.tokenizer)
        # The same program reads what it has written.
        assert training.evaluate(saved.model, data.held_out) == results[name].held_out
        assert len(results[name].answers) == 2
        (board,) = Path(config.workdir, name, "tensorboard").iterdir()
        assert (b"/param_p50" in board.read_bytes()) == (name == "ember")
        assert b"loss" in board.read_bytes()
    printed = capsys.readouterr().out
    assert "16 conversations" in printed
    assert "loss on answers" in printed
    with pytest.raises(UserError, match=r"holds an earlier run: pass --config\.over"):
        finetune.run(config)
    config.overwrite = True
    config.model = f"{config.workdir}/ember/model"
    with pytest.raises(UserError, match=r"which --config\.overwrite would delete"):
        finetune.run(config)
    other = Path(config.workdir) / "notes.txt"
    other.write_text("not of this program")
    training.prepare_workdir(config, ["adamw"])
    assert other.exists()
    assert not (Path(config.workdir) / "adamw").exists()


def test_resumed_run_ends_like_an_uninterrupted_one(config, tmp_path):
    config.checkpoint_every = 2
    whole = finetune.run(config)["ember"]
    config.workdir = str(tmp_path / "resumed")

    class Stop(Exception):
        pass

    kept = training.batches

    def three_batches(*args):
        for i, batch in enumerate(kept(*args)):
            if i == 3:
                raise Stop
            yield batch

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stop):
        patch.setattr(training, "batches", three_batches)
        finetune.run(config)
    config.resume = True
    assert finetune.run(config)["ember"] == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": True}, "needs --config.checkpoint_every"),
        ({"optimizer.learning_rate": -1e-4}, "-0.0001, but must not be negative"),
        ({"batch_size": 0}, "is 0, but it must be at least 1"),
        ({"optimizer.embed_learning_rate": 1e-5}, "has one table for embedding and"),
        ({"held_out": 20}, "has 20 conversations, and the last 20 are held out"),
        ({"optimizer.tables": "sgd"}, "must be 'ember' or 'adamw'"),
        ({"optimizer.warmup_steps": 4}, "must be less than optimizer.steps, which is"),
    ],
)
def test_bad_config_is_refused_before_any_step(config, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(message)):
        finetune.run(config)


def test_rl_in_both_arms(tmp_path, tiny):
    config = grpo_smollm2.get_config()
    config.update(model=str(tiny), workdir=str(tmp_path / "run"), held_out=2)
    config.update(prompts=2, answers=2, answer_tokens=3, beta=0.04)
    config.optimizer.steps = 2
    results = grpo.run(config, compare=True)
    assert set(results) == {("ember", 0), ("adamw", 0)}
    for result in results.values():
        assert len(result.rewards) == len(result.lengths) == 2
        assert all(0 < n <= 3 for n in result.lengths)
    models.load(tmp_path / "run/ember_0/model")
    config.answers = 1
    with pytest.raises(UserError, match=r"two --config\.answers"):
        grpo.run(config)


@pytest.fixture
def benchmark(tiny, monkeypatch):
    """The benchmark on a tiny model, with room for tokens of one byte."""
    for module in (finetuning, new_tokens):
        monkeypatch.setattr(module, "MODEL", tiny)
    for name, value in {"LENGTH": 160, "ANSWER": 64}.items():
        monkeypatch.setattr(benchmark_data, name, value)
    monkeypatch.setattr(finetuning, "HELD_OUT", 8)
    monkeypatch.setattr(
        benchmark_data,
        "english",
        lambda directory: benchmark_data.load(directory, "signatures", 0, 1, 8)[1],
    )
    finetuning.setup.cache_clear()
    yield
    finetuning.setup.cache_clear()


@pytest.mark.usefixtures("benchmark")
def test_runs_of_the_benchmark():
    found = {
        arm["tables"]: finetuning.execute(arm | {"steps": 2})
        for arm in (FROZEN, ADAMW, EMBER)
    }
    before = finetuning.before(FROZEN)
    assert all(run["loss"] < before["loss"] for run in found.values())
    assert found["frozen"]["largest_row_step"] == 0
    # The softmax moves rows that no task has.
    assert found["ember"]["moved_unseen"]["head"] > 0
    untied = EMBER | {"steps": 2, "tied": False, "embed_rate": 1e-4}
    run = finetuning.execute(untied)
    assert run["moved_unseen"]["embed"] == 0 < run["moved_seen"]["embed"]


@pytest.mark.usefixtures("benchmark")
@pytest.mark.parametrize("tables", ["ember", "adamw"])
def test_only_momentum_moves_old_rows(tables):
    settings = {"tables": tables, "head_rate": 1e-2, "steps": 2}
    run = new_tokens.execute(settings)
    n_old = NUMBERS["vocab_size"]
    assert run["old_rows_changed"] == (0 if tables == "ember" else n_old)
    assert run["new_rows_changed"] == 10


@pytest.fixture
def smollm2():
    if not SMOLLM2.exists():
        if "CI" in os.environ:
            pytest.fail(f"{SMOLLM2} is missing: `make test-tunix` fetches it")
        pytest.skip("`make test-tunix` fetches the model")
    return models.load(SMOLLM2)


def test_smollm2_knows_english(smollm2):
    """The loss on Debian's FAQ is 3.459 with the right theta, and 3.49 without."""
    if not FAQ.exists():
        pytest.skip("`make debian-data` fetches the text")
    text = tasks.prose(gzip.decompress(FAQ.read_bytes()).decode())
    ids = smollm2.tokenizer.encode(text)[: 8 * 128]
    examples = [
        chats.Example(np.array(ids[i : i + 128], np.int32), np.ones(128, bool))
        for i in range(0, len(ids), 128)
    ]
    batches = [*training.in_batches(chats.pack(examples, 128), 8)]
    loss = training.evaluate(smollm2.model, batches)
    assert loss == pytest.approx(3.459, abs=0.01)


def test_smollm2_answers(smollm2):
    (answer,) = training.answers(
        smollm2.model, smollm2.tokenizer, ["What is the capital of France?"], 12
    )
    assert "Paris" in answer
