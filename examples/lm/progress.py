"""What a person sees while something takes long."""

import contextlib
import threading
from collections.abc import Iterator

from tqdm import tqdm

from examples.lm import Config, processes


def progress_bar(config: Config, name: str, step: int) -> tqdm:
    tokens_per_step = config.batch_size * config.sequence_length
    return tqdm(
        desc=name,
        initial=step * tokens_per_step,
        total=config.steps * tokens_per_step,
        unit=" tokens",
        unit_scale=True,
        mininterval=0.5,
        disable=not processes.is_primary(),
    )


@contextlib.contextmanager
def clock(text: str, disable: bool = False) -> Iterator[None]:
    """Shows the time that something takes which says nothing itself, as compilers."""
    bar = tqdm(desc=text, bar_format="{desc}: {elapsed}", leave=False, disable=disable)
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        bar.close()
