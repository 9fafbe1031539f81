"""One program on many hosts: finding each other, and stopping together."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from examples.lm.command import explain
from examples.lm.errors import UserError


def initialize() -> None:
    """Joins the processes of a cluster if the environment describes one.

    JAX recognizes TPU pods, SLURM, Open MPI and Kubernetes. Anywhere else, set
    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    if count := os.environ.get("JAX_NUM_PROCESSES"):
        index = os.environ.get("JAX_PROCESS_ID", "")
        try:
            jax.distributed.initialize(num_processes=int(count), process_id=int(index))
        except ValueError as error:
            raise UserError(
                f"JAX_NUM_PROCESSES is {count!r} and JAX_PROCESS_ID {index!r}: {error}."
                " Set both, the second from 0 to one less than the first, and"
                " JAX_COORDINATOR_ADDRESS to host:port."
            ) from error
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address" not in str(error):
            raise
        # There is no cluster: this is the only process.


def is_primary() -> bool:
    """Returns True in the process that prints and writes."""
    return jax.process_index() == 0


def log(text: str) -> None:
    if is_primary():
        print(text, flush=True)


def wait_for_all(name: str) -> None:
    """Returns once every process has called it."""
    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def end_at_once_on_error() -> Iterator[None]:
    """Ends one of several processes when it fails.

    It would otherwise wait for the others at its exit, while they wait for its part of
    a step. The launcher or the cluster ends them.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if text := explain(error):
            print(f"\n{text}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        os._exit(1)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM and the first Ctrl-C into a request to save and end.

    A second Ctrl-C stops the program at once.

    Yields:
      A function of the step, called on every process, that returns True when all
      processes should stop.
    """
    if jax.process_count() > 1:
        # JAX watches for SIGTERM in all processes, which agree on a step.
        with _handle(signal.SIGINT, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            yield multihost_utils.reached_preemption_sync_point
        return
    event = threading.Event()
    with _handle(signal.SIGINT, event.set), _handle(signal.SIGTERM, event.set):
        yield lambda step: event.is_set()


@contextlib.contextmanager
def _handle(number: signal.Signals, action: Callable[[], object]) -> Iterator[None]:
    """Runs the action at the first such signal; a second one acts as before."""

    def handle(*_: object) -> None:
        signal.signal(number, previous)
        action()

    previous = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, previous)
