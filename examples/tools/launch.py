r"""Runs a program in several processes on this machine, as a pod has several hosts.

    python -m examples.tools.launch --processes=2 --devices=4 -- \
        -m examples.pretrain --config=configs/pretrain_small.py

Each process has its own CPU devices and talks to the others over loopback. The
arguments of Python follow `--`. Ctrl-C, SIGTERM and SIGHUP are passed on.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def launch(
    arguments: Sequence[str], processes: int, devices: int, **popen: Any
) -> Iterator[list[subprocess.Popen]]:
    """Starts processes that find each other, and kills those that are alive at the end.

    Args:
      arguments: arguments of Python, such as `["-m", "examples.pretrain"]`.
      processes: number of processes.
      devices: number of CPU devices of each.
      **popen: passed on to `subprocess.Popen`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
    }
    with contextlib.ExitStack() as stack:
        started = []
        for index in range(processes):
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment | {"JAX_PROCESS_ID": str(index)},
                **popen,
            )
            stack.enter_context(process)  # waits for it
            stack.callback(process.kill)
            started.append(process)
        yield started


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--processes", type=int, default=2, help="number (%(default)s)")
    flag("--devices", type=int, default=4, help="CPU devices of each (%(default)s)")
    flag("arguments", nargs="+", help="arguments of Python, after --")
    options = parser.parse_args()
    sizes = options.processes, options.devices
    # In a session of their own they get a terminal's Ctrl-C once, from here.
    with launch(options.arguments, *sizes, start_new_session=True) as started:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda n, _: [p.send_signal(n) for p in started])
        while None in (codes := [process.poll() for process in started]):
            if any(codes):
                break  # the others would wait for the one that has failed
            time.sleep(0.1)
        return next(filter(None, codes), 0)


if __name__ == "__main__":
    sys.exit(main())
