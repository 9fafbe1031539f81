"""Measures how fast one core reads batches of windows from local token files.

    python -m benchmarks.data.run [--gigabytes=2] [--directory=DIR]

Writes tokens a second and unshared memory (USS) for several lengths of windows to
loader.json in the same folder. Makes random tokens first, in 16 shards of three
formats.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import store
from benchmarks.common.command import make_parser
from examples.lm import data

RESULT = Path(__file__).with_name("loader.json")
SHARDS, VOCAB_SIZE = 16, 50_257


def write_shards(directory: Path, n_tokens: int, vocab_size: int, seed: int = 0) -> str:
    """Writes shards of uniform token ids and returns the patterns that name them."""
    directory.mkdir(parents=True)
    for i in range(SHARDS):
        rng = np.random.default_rng((seed, i))
        ids = rng.integers(0, vocab_size, n_tokens // SHARDS, np.uint16)
        if i % 3 == 0:
            header = np.zeros(256, "<i4")
            header[:3] = 20240520, 1, ids.size
            with (directory / f"{i:02}_llmc.bin").open("wb") as file:
                file.write(header.tobytes())
                ids.tofile(file)
        elif i % 3 == 1:
            ids.tofile(directory / f"{i:02}_nanogpt.bin")
        else:
            np.save(directory / f"{i:02}_numpy.npy", ids)
    return f"{directory}/*.bin,{directory}/*.npy"


def unshared_bytes() -> int:
    """Returns this process's memory without pages that belong to files."""
    fields = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in fields}
    return (
        sizes["Private_Clean"]
        + sizes["Private_Dirty"]
        - sizes.get("Private_Hugetlb", 0)
    )


def measure(
    pattern: str, sequence_length: int, batch_size: int, seconds: float
) -> dict[str, float]:
    source = data.open_source(pattern, sequence_length, VOCAB_SIZE)
    batches = data.train_batches([source], batch_size, seed=0)
    next(batches)
    start, n_batches = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        n_batches += 1
    rate = n_batches * batch_size * sequence_length / (time.perf_counter() - start)
    return {
        "sequence_length": sequence_length,
        "batch_size": batch_size,
        "tokens_per_second": round(rate),
        "unshared_bytes": unshared_bytes(),
    }


def main() -> None:
    parser = make_parser(__doc__)
    flag = parser.add_argument
    flag("--gigabytes", type=float, default=2.0, help="of token files (%(default)s)")
    flag("--directory", default=tempfile.gettempdir(), help="for them (%(default)s)")
    flag("--seconds", type=float, default=10.0, help="of each row (%(default)s)")
    options = parser.parse_args()
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    rows = []
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        n_tokens = int(options.gigabytes * 1e9 / 2)
        pattern = write_shards(Path(scratch, "tokens"), n_tokens, VOCAB_SIZE)
        for sizes in ((256, 64), (2048, 32), (4096, 8)):
            rows.append(measure(pattern, *sizes, options.seconds))
            print(rows[-1], flush=True)
    content = {"gigabytes": options.gigabytes, "rows": rows}
    store.write_object(RESULT, content, "grain")


if __name__ == "__main__":
    main()
