"""Finetuning of SmolLM2-135M-Instruct: Ember against AdamW on its token table.

    python -m benchmarks.post_training.run

benchmarks/post_training/plan.py lists the runs. Finished runs are lines of
results.jsonl in the same folder and are not run again. A run takes about two minutes
on one core.
"""

import functools
from collections.abc import Callable

from benchmarks.common import store
from benchmarks.common.command import make_parser
from benchmarks.post_training import finetuning, new_tokens
from benchmarks.post_training.plan import RESULTS, plan


def main() -> None:
    make_parser(__doc__).parse_args()
    for settings in plan():
        if store.find(RESULTS, settings):
            continue
        execute = functools.partial(executor(settings), settings)
        run = store.run_once(RESULTS, settings, execute)
        print(
            settings,
            f"loss {run['loss']:.3f}, English {run['english']:.3f}",
            flush=True,
        )


def executor(settings: store.Settings) -> Callable[[store.Settings], store.Run]:
    if settings["task"] == "new tokens":
        return new_tokens.execute
    is_before = settings["tables"] == "before"
    return finetuning.before if is_before else finetuning.execute


if __name__ == "__main__":
    main()
