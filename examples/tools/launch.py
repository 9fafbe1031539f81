r"""Runs a program in several processes on this machine, as a pod has several hosts.

    python -m examples.tools.launch --processes=2 --devices=4 -- \
        -m examples.pretrain --config=configs/pretrain_small.py

Each process has its own CPU devices and talks to the others over loopback. The
arguments of Python follow `--`. Ctrl-C and SIGTERM are passed on.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def launch(
    arguments: Sequence[str], processes: int, devices: int, **popen: object
) -> Iterator[list[subprocess.Popen]]:
    """Starts processes that find each other, and kills those that are alive at the end.

    Args:
      arguments: arguments of Python, such as `["-m", "examples.pretrain"]`.
      processes: number of processes.
      devices: number of CPU devices of each.
      **popen: passed on to `subprocess.Popen`.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    try:
        for index in range(processes):
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": flags,
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
            command = [sys.executable, *arguments]
            started.append(subprocess.Popen(command, env=environment, **popen))  # pyright: ignore[reportArgumentType, reportCallIssue]
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()


def wait(started: Sequence[subprocess.Popen]) -> int:
    """Waits for all processes, or for the first that fails; returns its exit code."""
    while True:
        codes = [process.poll() for process in started]
        failed = [code for code in codes if code]
        if failed or None not in codes:
            return failed[0] if failed else 0
        time.sleep(0.1)


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
    with launch(options.arguments, *sizes, stdout=subprocess.PIPE) as started:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(
                number, lambda n, _: [process.send_signal(n) for process in started]
            )
        for process in started:
            threading.Thread(target=_pass_on, args=(process,)).start()
        return wait(started)


def _pass_on(process: subprocess.Popen) -> None:
    """Prints the output of a process without Gloo's report of each connection."""
    for line in process.stdout or ():
        if not line.startswith(b"[Gloo]"):
            sys.stdout.buffer.write(line)
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
