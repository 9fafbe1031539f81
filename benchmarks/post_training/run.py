"""Ember against AdamW on the token tables, in finetuning and in GRPO by batch size.

    python -m benchmarks.post_training.run finetune
    python -m benchmarks.post_training.run grpo

benchmarks/post_training/comparison.py says which runs these are. Finished runs are
lines of finetune.jsonl and grpo.jsonl in the same folder and are not run again.
"""

import argparse
import importlib

from absl import logging

from benchmarks.common.store import Run, Settings
from benchmarks.post_training.comparison import FINETUNE, GRPO, finish

BENCHMARKS = {benchmark.name: benchmark for benchmark in (FINETUNE, GRPO)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=BENCHMARKS)
    benchmark = BENCHMARKS[parser.parse_args().name]
    # Imported late: --help needs no tunix.
    module = importlib.import_module(f"benchmarks.post_training.{benchmark.name}")
    logging.set_verbosity(logging.ERROR)

    def execute_and_print(settings: Settings) -> Run:
        result = module.execute(settings)
        print(settings, f"{benchmark.score} {result[benchmark.score]:.3f}", flush=True)
        return result

    finish(benchmark, execute_and_print)


if __name__ == "__main__":
    main()
