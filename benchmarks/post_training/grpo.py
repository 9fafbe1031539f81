"""Reward before and after reinforcement learning of SmolLM2 as in `make grpo`.

    python -m benchmarks.post_training.grpo

Writes benchmarks/post_training/grpo.json. Needs `make model` and tunix.
"""

import argparse
import tempfile

from benchmarks.common import store
from benchmarks.post_training.report import GRPO
from configs import grpo_smollm2
from examples import grpo


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    config = grpo_smollm2.get_config()
    with tempfile.TemporaryDirectory() as workdir:
        config.workdir = workdir
        results = grpo.run(config, compare=True)
    measured = {
        f"{name}, seed {seed}": result._asdict()
        for (name, seed), result in results.items()
    }
    store.write_object(GRPO, {"measured": measured}, "google-tunix")
    print(f"Wrote {GRPO}")


if __name__ == "__main__":
    main()
