"""No run replaces another, goes on as another, or saves what is not finite."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import examples.pretrain
from examples.lm import checkpoints, command, compatibility, data, program, training
from examples.lm.errors import UserError
from tests.examples.pretraining import (
    at_step,
    checkpoint,
    complete_steps,
    losses,
    run_dir,
    train,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")


def start_again(config, **settings):
    """Trains as a user would who repeats a command."""
    config.update({"overwrite": False, "resume": False} | settings)
    return training.train(config, data.load(**config.data), run_dir(config))


def everything(config) -> dict[Path, bytes]:
    files = (p for p in run_dir(config).rglob("*") if p.is_file())
    return {p: p.read_bytes() for p in files if p.name != "lock"}


def test_a_new_run_refuses_to_replace_another(config):
    train(config, steps=2)
    before = everything(config)
    with pytest.raises(UserError) as error:
        start_again(config)
    for way in ("--config.resume", "--config.workdir", "--config.overwrite"):
        assert way in str(error.value)
    assert everything(config) == before
    start_again(config, overwrite=True)
    assert complete_steps(config) == [2]


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/damaged-6-x/state"])
def test_what_another_run_has_left_counts_as_a_run(config, left):
    file = run_dir(config) / left
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    with pytest.raises(UserError, match="holds another run"):
        start_again(config)
    assert file.read_text() == "precious"


def test_leftovers_of_a_start_that_failed_do_not(config):
    (run_dir(config) / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    start_again(config, steps=2)
    assert complete_steps(config) == [2]


def test_the_second_arm_is_looked_at_before_the_first_is_trained(config, monkeypatch):
    monkeypatch.delattr(training, "train")
    arm = Path(config.workdir, "adam")
    arm.mkdir(parents=True)
    (arm / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="adam holds another run"):
        examples.pretrain.run(config, compare=True)


HOLDER = """
import sys, time
from pathlib import Path
from examples.lm.run_dir import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_run_a_directory_until_its_process_dies(config):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run_dir(config))],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"\(process {process.pid} on .*is going on"):
        start_again(config)
    process.kill()
    process.communicate()
    start_again(config, steps=2)
    assert complete_steps(config) == [2]


def not_finite_from(step: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the loss of a step, or the state after it, not finite."""
    make = program.make_program
    taken = 0

    def make_program(*args):
        made = make(*args)

        def train_step(state, tokens):
            nonlocal taken
            taken += 1
            state, loss = made.train_step(state, tokens)
            if taken == step and what == "state":
                params = jax.tree.map(lambda x: x * jnp.nan, state.params)
                state = state._replace(params=params)
            return state, jnp.inf if taken == step and what == "loss" else loss

        return made._replace(train_step=train_step)

    monkeypatch.setattr(training, "make_program", make_program)


@pytest.mark.parametrize(
    ("what", "step", "message", "kept"),
    [
        ("loss", 5, r"step 5: the loss is inf", [2, 4]),
        ("loss", 1, r"step 1: the loss is inf.*no checkpoint is left", []),
        ("state", 4, r"step 4: params\.embed.* has infinities", [2]),
        ("state", 3, r"step 3: the validation loss is nan", [2]),
    ],
)
def test_what_is_not_finite_ends_the_run_and_is_never_saved(
    config, monkeypatch, what, step, message, kept
):
    not_finite_from(step, what, monkeypatch)
    with pytest.raises(checkpoints.NotFinite, match=message):
        start_again(config)
    assert complete_steps(config) == kept
    assert all(r["step"] <= step for r in losses(config))
    written = json.dumps(losses(config))
    assert "NaN" not in written
    assert "Infinity" not in written


def test_a_run_that_diverges_ends_with_a_line_and_exit_code_1(config):
    config.tables.head_learning_rate = 1e30
    config.body.learning_rate = 1e30
    with pytest.raises(SystemExit) as ended, command.one_line_errors():
        examples.pretrain.run(config)
    assert "Training has diverged at step" in str(ended.value.code)
    assert len(str(ended.value.code).strip().splitlines()) == 1


@pytest.mark.parametrize("change", ["one word", "a name for a word", "fewer documents"])
def test_resume_with_other_text_refuses(config, corpus, change):
    train(config, steps=4)
    before = everything(config)
    for file in corpus.iterdir():
        text = file.read_text()
        if change == "a name for a word":  # it may have the same tokens
            file.write_text(text.replace("counts", "stnuoc"))
        elif change == "one word" and file.name == "03.txt":
            file.write_text(text.replace("word3 counts 3 ", "word3 counts 4 "))
        elif change == "fewer documents" and file.name > "12":
            file.unlink()
    with pytest.raises(compatibility.Unusable, match=r"of a run on other text: .*text"):
        start_again(config, resume=True, steps=6)
    assert everything(config) == before


def test_the_tokenizer_is_a_part_of_the_text():
    tokens = data.Tokens(*(jnp.arange(9) for _ in range(2)), tokenizer="{}")
    other = data.Tokens(*tokens, tokenizer="{ }")
    saved, now = map(compatibility.text_of, (tokens, other))
    compatibility.check_text(saved, saved, "here")
    with pytest.raises(compatibility.Unusable, match="other text: tokenizer have"):
        compatibility.check_text(saved, now, "here")


def test_the_same_text_may_lie_elsewhere(config, corpus):
    train(config, steps=4)
    corpus.rename(corpus.with_name("moved"))
    config.data.path = str(corpus.with_name("moved"))
    assert start_again(config, resume=True, steps=6).step == 6


@pytest.mark.parametrize("steps", [4, 3])
def test_resume_of_a_finished_run_says_so(config, capsys, steps):
    train(config, steps=4)
    before = everything(config)
    start_again(config, resume=True, steps=steps)
    assert f"has taken 4 of {steps} steps: there is nothing to do" in (
        capsys.readouterr().out
    )
    assert everything(config) == before


def test_resume_where_nothing_is_says_so(config, capsys):
    start_again(config, resume=True, steps=2)
    assert "has no checkpoint to resume: starting anew" in capsys.readouterr().out


def test_a_log_that_was_deleted_is_not_made_up(config):
    train(config, steps=4)
    loss = losses(config)[-1]["validation_loss"]
    (run_dir(config) / "metrics.jsonl").unlink()
    result = start_again(config, resume=True, steps=4)
    assert result.validation_loss == loss
    assert checkpoint(config, 4).exists()


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: 1e12 bytes",
        "INTERNAL: Error dispatching computation: Out of memory allocating 1e12 bytes.",
    ],
)
def test_a_step_that_does_not_fit_into_memory_is_a_line(monkeypatch, config, message):
    error = jax.errors.JaxRuntimeError(message)

    def train(*_, **__):
        raise error

    monkeypatch.setattr(training, "train", train)
    with pytest.raises(SystemExit) as ended, command.one_line_errors():
        examples.pretrain.run(config)
    assert "--config.batch_size" in str(ended.value.code)


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), command.one_line_errors():
        1 / 0  # noqa: B018


def test_parameters_that_cannot_be_cut_are_named(config):
    config.mesh.update(fsdp=1, tensor=8)
    with pytest.raises(UserError, match=r"embed/embedding is \(300, 16\) and cannot"):
        examples.pretrain.run(config)


def test_ctrl_c_in_an_arm_before_any_validation_has_no_loss(config, monkeypatch):

    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: signal.raise_signal(signal.SIGINT))
        assert start_again(config).validation_loss is None
