"""The training loop."""

import math
import time
from collections.abc import Callable
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
    """The outcome of a run."""

    step: int  # below config.steps if it was interrupted
    validation_loss: float | None  # None without validation text, or if interrupted
    seconds: float  # with compilation, validation and checkpoints
    records: list[Record]
    sample: tuple[str, str] | None = None  # a text, and the model's continuation


class Text(NamedTuple):
    """The token files of a run."""

    train: list[data.Windows]
    validation: data.Windows | None


def open_text(config: Config) -> Text:
    """Opens the token files of a run."""
    if not config.data.path:
        raise UserError(
            "Give the token files, such as --config.data.path='tokens/*.bin'."
        )
    settings = config.sequence_length, config.data.vocab_size, config.data.dtype
    path = config.data.path
    patterns = path.split(",") if config.data.weights else [path]
    held_out = config.data.validation_path
    return Text(
        [data.open_source(pattern, *settings) for pattern in patterns],
        data.open_source(held_out, *settings) if held_out else None,
    )


def train(config: Config, directory: epath.Path, text: Text | None = None) -> Result:
    """Trains a model, from the start or from the last checkpoint in `directory`.

    SIGTERM or Ctrl-C ends it early, after a last checkpoint.

    Raises:
      UserError: the directory belongs to another run, a token file is damaged, or
        training has diverged.
    """
    text = text or open_text(config)
    with (
        use_mesh(config) as mesh,
        checkpoints.locked(directory, config.overwrite),
        checkpoints.Checkpoints(
            directory / "checkpoints", config.keep_checkpoints
        ) as saved,
    ):
        return _train(config, mesh, text, directory, saved)


def _train(
    config: Config,
    mesh: Mesh,
    text: Text,
    directory: epath.Path,
    saved: checkpoints.Checkpoints,
) -> Result:
    program = make_program(config, mesh)
    rows = local_rows(mesh, config.batch_size)
    weights = config.data.weights or None
    batches = data.train_batches(
        text.train, config.batch_size, config.seed, weights, rows
    )
    validation = []
    if text.validation:
        sizes = config.batch_size, config.eval_batches
        validation = data.validation_batches(text.validation, *sizes, rows)

    def place(rows: np.ndarray) -> jax.Array:
        shape = config.batch_size, *rows.shape[1:]
        return jax.make_array_from_process_local_data(batch_sharding(mesh), rows, shape)

    def next_batch() -> tuple[Any, jax.Array]:
        """Returns the position before a batch, and the batch."""
        return batches.get_state(), place(next(batches))

    run = checkpoints.identity(config, data.fingerprint(text.train))
    if restored := saved.restore(program.state, run):
        step, state, position = restored
        batches.set_state(position)
    else:
        step, state = 0, program.init()
    if config.resume and (not step or step >= config.steps):
        log(f"{directory} resumes at step {step} of {config.steps}.")
    metrics = MetricsLog(directory / "metrics.jsonl", step, config.tensorboard)
    start = time.perf_counter() - (last(metrics.records, "seconds") or 0.0)

    def record(at: int, name: str, value: Any) -> float:
        """Waits for a value and records it."""
        value = float(value)
        if not math.isfinite(value):
            raise checkpoints.diverged(at, f"the {name.replace('_', ' ')} is {value}")
        metrics.add(step=at, **{name: value}, seconds=time.perf_counter() - start)
        return value

    def evaluate() -> None:
        losses = [program.eval_step(state.params, place(b)) for b in validation]
        record(step, "validation_loss", np.mean([float(x) for x in losses]))

    position, batch = next_batch()
    pending = None  # step and loss that have been dispatched, but not read
    with (
        stop_signals() as should_stop,
        _progress(config, directory, step, mesh) as show,
    ):
        while step < config.steps and not should_stop(step):
            state, loss = program.train_step(state, batch)
            step += 1
            # The device computes this step, while the host fetches the next batch and
            # reads the loss of the step before.
            position, batch = next_batch()
            if pending:
                show(record(*pending))
            pending = step, "loss", loss
            is_last = step == config.steps
            evaluates = validation and (is_last or step % config.eval_every == 0)
            saves = is_last or step % config.checkpoint_every == 0
            if evaluates or saves:
                show(record(*pending))
                pending = None
            if evaluates:
                evaluate()
            if saves:
                metrics.flush()
                saved.save(step, state, position, run)
            elif step % config.log_every == 0:
                metrics.write()
        if pending:
            record(*pending)
        if saved.latest_step != step:
            metrics.flush()
            saved.save(step, state, position, run)
    if (
        validation
        and step >= config.steps
        and not last(metrics.records, "validation_loss")
    ):
        evaluate()  # the log was lost
    metrics.close()
    sample = None
    if step >= config.steps and config.data.tokenizer:
        tokens = place(validation[0]) if validation else batch
        sample = _as_text(config, program.sample(state.params, tokens))
    loss, seconds = (last(metrics.records, x) for x in ("validation_loss", "seconds"))
    return Result(step, loss, seconds or 0.0, metrics.records, sample)


class _progress:
    """A progress bar in tokens, with the loss and on accelerators MFU."""

    def __init__(self, config: Config, directory: epath.Path, step: int, mesh: Mesh):
        self._tokens = config.batch_size * config.sequence_length
        flops = cost.flops(config, recomputed=False)
        self._flops = flops / cost.peak_flops(mesh)
        self._bar = tqdm(
            desc=directory.name,
            initial=step * self._tokens,
            total=config.steps * self._tokens,
            unit=" tokens",
            unit_scale=True,
            mininterval=0.5,
            disable=not is_primary(),
        )

    def __enter__(self) -> Callable[[float], None]:
        self._bar.set_postfix_str("compiling")  # until the first step is done
        return self._show

    def _show(self, loss: float) -> None:
        self._bar.update(self._tokens)
        values = {"loss": f"{loss:.3f}"}
        rate = self._bar.format_dict["rate"]
        if self._flops and rate:
            values["MFU"] = f"{rate / self._tokens * self._flops:.1%}"
        self._bar.set_postfix(values, refresh=False)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _as_text(config: Config, drawn: jax.Array) -> tuple[str, str]:
    """Returns the text of a row of tokens whose second half was drawn."""
    decode = tokenizer.load(config.data.tokenizer).decode
    row = np.asarray(drawn)[0]
    end = row.size - row.size // 2
    return decode(row[:end]), decode(row[end:])
