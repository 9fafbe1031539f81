"""One program on many hosts: finding each other, and stopping together."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from examples.lm.errors import UserError


def initialize() -> None:
    """Joins the processes of a cluster if the environment describes one.

    JAX recognizes TPU pods, SLURM, Open MPI and Kubernetes. Anywhere else, set
    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    count, index = (
        os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID")
    )
    try:
        if count:
            jax.distributed.initialize(None, int(count), int(index or ""))
        else:
            jax.distributed.initialize()
    except ValueError as error:
        if count:
            raise UserError(
                f"JAX_NUM_PROCESSES is {count!r} and JAX_PROCESS_ID {index!r}: {error}."
                " Set both, the second from 0 to one less than the first, and"
                " JAX_COORDINATOR_ADDRESS to host:port."
            ) from error
        if "coordinator_address" not in str(error):  # else there is no cluster
            raise


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
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM and the first Ctrl-C into a request to save and end.

    A second one acts as before: it stops the program at once.

    Yields:
      A function of the step, called on every process, that returns True when all
      processes should stop.
    """
    event = threading.Event()
    numbers, should_stop = [signal.SIGINT, signal.SIGTERM], lambda step: event.is_set()
    is_alone = jax.process_count() == 1
    if not is_alone:
        # JAX watches for SIGTERM in all processes, which agree on a step.
        numbers, should_stop = (
            [signal.SIGINT],
            multihost_utils.reached_preemption_sync_point,
        )

    def handle(number: int, frame: object) -> None:
        signal.signal(number, previous[number])
        event.set() if is_alone else os.kill(os.getpid(), signal.SIGTERM)

    previous: dict[int, Any] = {n: signal.signal(n, handle) for n in numbers}
    try:
        yield should_stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
