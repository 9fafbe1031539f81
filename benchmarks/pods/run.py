"""Costs of a training step on each chip of some TPU pods, without a TPU.

    python -m benchmarks.pods.run

Compiles the step of `examples.pretrain` for each case of docs/pods.md and writes what
it prints to benchmarks/pods/NAME.txt. Takes about five minutes.
"""

import argparse
import subprocess
import sys

from benchmarks.pods.report import CASES, OUTPUTS, arguments


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for name in CASES:
        command = [sys.executable, "-m", *arguments(name)]
        path = OUTPUTS / f"{name}.txt"
        path.write_text(subprocess.check_output(command, text=True))
        print(f"Wrote {path}", flush=True)


if __name__ == "__main__":
    main()
