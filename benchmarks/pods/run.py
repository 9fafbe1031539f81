"""Costs of a training step on each chip of a TPU pod, without a TPU.

    python -m benchmarks.pods.run

Compiles the step of `examples.pretrain` for docs/pods.md and writes what it prints to
benchmarks/pods/1b_v5p.txt. Takes about five minutes.
"""

import subprocess
import sys

from benchmarks.common.command import make_parser
from benchmarks.pods.report import ARGUMENTS, OUTPUT


def main() -> None:
    make_parser(__doc__).parse_args()
    command = [sys.executable, "-m", *ARGUMENTS]
    OUTPUT.write_text(subprocess.check_output(command, text=True))
    print(f"Wrote {OUTPUT}")


if __name__ == "__main__":
    main()
