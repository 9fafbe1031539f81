"""The training loop."""

import math
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from examples.lm import Config, checkpoints, compatibility, data, processes, report
from examples.lm import run_dir as run_dir_of
from examples.lm.mesh import global_batch, local_rows, use_mesh
from examples.lm.metrics import MetricsLog, Record, last
from examples.lm.program import Program, make_program
from examples.lm.progress import clock, progress_bar
from examples.lm.sampling import Sample, as_text


class Result(NamedTuple):
    """What is left of a run."""

    step: int  # below config.steps if it was interrupted
    validation_loss: float | None  # None if it was interrupted before the first one
    seconds: float  # with compilation, validation and checkpoints
    records: list[Record]
    sample: Sample | None = None  # of a validation text, if one was wanted


def train(
    config: Config, tokens: data.Tokens, run_dir: Path, sample: bool = False
) -> Result:
    """Trains a model, from the start or from the last checkpoint in `run_dir`.

    SIGTERM or Ctrl-C ends it early, after a last checkpoint.

    Args:
      config: what to train, and on what mesh.
      tokens: what to train on.
      run_dir: where metrics and checkpoints go; all processes must see it.
      sample: whether the model continues a validation text at the end.

    Raises:
      UserError: the directory belongs to another run, the run to resume is not this
        one, training has diverged, or the disk is full.
    """
    with use_mesh(config) as mesh, run_dir_of.claim(run_dir, config):
        program = make_program(config, mesh)
        return _train(config, program, mesh, tokens, run_dir, sample)


def _train(
    config: Config,
    program: Program,
    mesh: Mesh,
    tokens: data.Tokens,
    run_dir: Path,
    sample: bool,
) -> Result:
    batch_size = config.batch_size
    sizes = config.sequence_length, batch_size
    rows = local_rows(mesh, batch_size)
    batches = data.train_batches(tokens.train, *sizes, config.seed, rows)
    validation = data.validation_batches(
        tokens.validation, *sizes, config.eval_batches, rows
    )

    def place(rows: np.ndarray) -> jax.Array:
        return global_batch(mesh, rows, batch_size)

    def evaluate(params: Any) -> float:
        losses = [program.eval_step(params, place(b)) for b in validation]
        return float(np.mean(losses))

    train_step = program.train_step
    if mesh.size > 1:
        with clock("compiling", disable=not processes.is_primary()):
            train_step = train_step.lower(program.state, program.tokens).compile()
        if processes.is_primary():
            print(report.collectives_of_step(config, program, train_step), flush=True)

    directory = run_dir / "checkpoints"
    if not config.resume and processes.is_primary():
        shutil.rmtree(directory, ignore_errors=True)
    processes.wait_for_all("old checkpoints are gone")
    step = 0
    with (
        checkpoints.full_disk_explained(directory, lambda: step),
        processes.stop_signals() as is_to_stop,
        checkpoints.open_manager(directory, config.keep_checkpoints) as manager,
    ):
        text = compatibility.text_of(tokens)
        restored = checkpoints.restore(manager, program.state, batches, config, text)
        state, step = restored or (program.init(), 0)
        if config.resume and processes.is_primary():
            _say_how_it_goes_on(run_dir, step, config.steps)
        log = MetricsLog(run_dir / "metrics.jsonl", step)
        start = time.perf_counter() - (last(log.records, "seconds") or 0.0)

        def record(name: str, value: float) -> None:
            if not math.isfinite(value):
                name = name.replace("_", " ")
                raise checkpoints.diverged(manager, step, f"the {name} is {value}")
            seconds = time.perf_counter() - start
            log.write(step=step, **{name: value}, seconds=seconds)

        def save() -> None:
            position = batches.get_state()
            checkpoints.save(manager, step, state, position, config, text)

        with (
            log.in_tensorboard(config.tensorboard),
            progress_bar(config, run_dir.name, step) as bar,
        ):
            bar.set_postfix_str("compiling")  # until the first step is done
            while step < config.steps and not is_to_stop(step):
                state, loss = train_step(state, place(next(batches)))
                step += 1
                record("loss", float(loss))
                bar.set_postfix(step=step, loss=f"{float(loss):.3f}", refresh=False)
                bar.update(batch_size * config.sequence_length)
                if step % config.eval_every == 0 or step == config.steps:
                    record("validation_loss", evaluate(state.params))
                if step % config.checkpoint_every == 0 or step == config.steps:
                    save()
        if manager.latest_step() != step:
            save()
        if step >= config.steps and last(log.records, "validation_loss") is None:
            record("validation_loss", evaluate(state.params))  # the log was lost
    loss, seconds = (last(log.records, name) for name in ("validation_loss", "seconds"))
    continued = None
    if sample and step >= config.steps:
        drawn = program.sample(state.params, place(validation[0]))
        continued = as_text(tokens.tokenizer, np.asarray(drawn)[0])
    return Result(step, loss, seconds or 0.0, log.records, continued)


def _say_how_it_goes_on(run_dir: Path, step: int, steps: int) -> None:
    if not step:
        print(f"{run_dir} has no checkpoint to resume: starting anew.", flush=True)
    if step >= steps:
        print(
            f"The run in {run_dir} has taken {step} of {steps} steps: there is nothing"
            " to do.",
            flush=True,
        )
