"""The training loop."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from examples.lm import Config, checkpoints, cost, data, tokenizer
from examples.lm.distributed import is_primary, log, stop_signals
from examples.lm.errors import UserError
from examples.lm.mesh import batch_sharding, local_rows, use_mesh
from examples.lm.metrics import MetricsLog, Record, last
from examples.lm.program import make_program


class Result(NamedTuple):
    step: int  # below config.steps if the run was interrupted
    seconds: float  # with compilation, validation and checkpoints
    records: list[Record]
    sample: tuple[str, str] | None = None  # a text, and the model's continuation


class Text(NamedTuple):
    """The token files of a run."""

    train: list[data.Windows]
    validation: data.Windows | None


def open_text(config: Config) -> Text:
    """Opens the token files of a run."""
    path, held_out = config.data.path, config.data.validation_path
    if not path:
        raise UserError(
            "Give token files, such as --config.data.path='tokens/*.bin'."
            " examples.tools.tokenize_shards makes them of text."
        )
    settings = config.sequence_length, config.data.vocab_size, config.data.dtype
    patterns = path.split(",") if config.data.weights else [path]
    sources = [data.open_source(pattern, *settings) for pattern in patterns]
    if config.batch_size > (n_windows := sum(map(len, sources))):
        raise UserError(
            f"batch_size is {config.batch_size}, but the text has only {n_windows}"
            " windows: give more text, or lower --config.batch_size or sequence_length."
        )
    return Text(sources, data.open_source(held_out, *settings) if held_out else None)


def train(config: Config, directory: epath.Path, text: Text | None = None) -> Result:
    """Trains a model, from the start or from the last checkpoint in `directory`.

    SIGTERM or Ctrl-C ends it early, after a last checkpoint.

    Raises:
      UserError: the directory belongs to another run, a token file is damaged, or
        training has diverged.
    """
    text = text or open_text(config)
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(use_mesh(config))
        program = make_program(config, mesh)
        rows = local_rows(mesh, config.batch_size)
        batches = data.train_batches(
            text.train, config.batch_size, config.seed, config.data.weights, rows
        )
        validation = []
        if text.validation:
            sizes = config.batch_size, config.eval_batches
            validation = data.validation_batches(text.validation, *sizes, rows)
        run = checkpoints.identity(config, data.fingerprint(text.train))

        # The text is in order: now an earlier run may be deleted.
        stack.enter_context(checkpoints.locked(directory, config.overwrite))
        saved = stack.enter_context(
            checkpoints.Checkpoints(directory / "checkpoints", config.keep_checkpoints)
        )
        if restored := saved.restore(program.state, run):
            step, state, position = restored
            batches.set_state(position)
        else:
            step, state = 0, program.init()
        if config.resume:
            log(f"{directory} resumes at step {step} of {config.steps}.")
        metrics = MetricsLog(directory / "metrics.jsonl", step, config.tensorboard)
        stack.callback(metrics.close)
        start = time.perf_counter() - (last(metrics.records, "seconds") or 0.0)
        should_stop = stack.enter_context(stop_signals())
        show = stack.enter_context(_progress(config, directory.name, step, mesh))

        def place(rows: np.ndarray) -> jax.Array:
            shape = config.batch_size, *rows.shape[1:]
            sharding = batch_sharding(mesh)
            return jax.make_array_from_process_local_data(sharding, rows, shape)

        def next_batch() -> tuple[Any, jax.Array]:
            """Returns the position before a batch, and the batch."""
            return batches.get_state(), place(next(batches))

        def record(at: int, name: str, value: Any) -> float:
            """Waits for a value and records it."""
            value = float(value)
            if not math.isfinite(value):
                raise checkpoints.diverged(
                    at, f"the {name.replace('_', ' ')} is {value}"
                )
            metrics.add(step=at, **{name: value}, seconds=time.perf_counter() - start)
            return value

        def read_losses(leave: int) -> None:
            while len(pending) > leave:
                at, loss = pending.pop(0)
                show(record(at, "loss", loss))

        watched = config.tensorboard and config.tables.optimizer == "ember"
        position, batch = next_batch()
        pending = []  # steps and losses that have been dispatched, but not read
        while step < config.steps and not should_stop(step):
            state, loss = program.train_step(state, batch)
            step += 1
            pending.append((step, loss))
            # The device computes this step, while the host fetches the next batch and
            # reads the loss of the step before.
            position, batch = next_batch()
            read_losses(leave=1)
            is_last = step == config.steps
            if validation and (is_last or step % config.eval_every == 0):
                read_losses(leave=0)
                losses = [program.eval_step(state.params, place(b)) for b in validation]
                record(step, "validation_loss", np.mean([float(x) for x in losses]))
            if watched and (is_last or step % config.log_every == 0):
                read_losses(leave=0)
                scalars = jax.device_get(program.monitor(state)).items()
                metrics.add(
                    step=step,
                    **{name: float(value) for name, value in scalars},
                    seconds=time.perf_counter() - start,
                )
            if is_last or step % config.checkpoint_every == 0:
                read_losses(leave=0)
                metrics.write(everything=True)
                saved.save(step, state, position, run)
            elif step % config.log_every == 0:
                metrics.write()
        if saved.latest_step != step:  # it was interrupted
            read_losses(leave=0)
            metrics.write(everything=True)
            saved.save(step, state, position, run)

        sample = None
        if step >= config.steps and config.data.tokenizer:
            tokens = place(validation[0]) if validation else batch
            row = np.asarray(program.sample(state.params, tokens))[0]
            decode = tokenizer.load(config.data.tokenizer).decode
            half = row.size - row.size // 2
            sample = decode(row[:half]), decode(row[half:])
        seconds = last(metrics.records, "seconds") or 0.0
        return Result(step, seconds, metrics.records, sample)


@contextlib.contextmanager
def _progress(
    config: Config, name: str, step: int, mesh: Mesh
) -> Iterator[Callable[[float], None]]:
    """Shows a bar in tokens, with the loss and on accelerators MFU."""
    tokens = config.batch_size * config.sequence_length
    flops = cost.flops(config, recomputed=False) / cost.peak_flops(mesh)
    with tqdm(
        desc=name,
        initial=step * tokens,
        total=config.steps * tokens,
        unit=" tokens",
        unit_scale=True,
        mininterval=0.5,
        disable=not is_primary(),
    ) as bar:
        bar.set_postfix_str("compiling")  # until the first step is done

        def show(loss: float) -> None:
            bar.update(tokens)
            values = {"loss": f"{loss:.3f}"}
            if flops and (rate := bar.format_dict["rate"]):
                values["MFU"] = f"{rate / tokens * flops:.1%}"
            bar.set_postfix(values, refresh=False)

        yield show
