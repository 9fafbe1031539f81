"""Stores the rewards of a run of `make grpo` for docs/post_training.md.

    make grpo
    python -m benchmarks.post_training.grpo

Reads runs/grpo/*/metrics.json and writes benchmarks/post_training/grpo.json.
"""

import json
from pathlib import Path

from benchmarks.common import store
from benchmarks.common.command import make_parser
from benchmarks.post_training.report import GRPO


def main() -> None:
    make_parser(__doc__).parse_args()
    files = sorted(Path("runs/grpo").glob("*/metrics.json"))
    measured = {file.parent.name: json.loads(file.read_text()) for file in files}
    store.write_object(GRPO, {"measured": measured}, "google-tunix")
    print(f"Wrote {len(measured)} runs to {GRPO}")


if __name__ == "__main__":
    main()
