"""Tables of the loader and of the fault runs."""

from benchmarks.common import store
from benchmarks.common.tables import markdown
from benchmarks.data import faults, run


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    return {"data.loader": loader(), "data.faults": fault_runs()}


def loader() -> str:
    result = store.read_object(run.RESULT)
    rows = [
        (
            f"{row['sequence_length']:,}",
            f"{row['tokens_per_second'] / 1e6:.1f} million",
            f"{row['unshared_bytes'] / 2**20:.0f} MiB",
        )
        for row in result["rows"]
    ]
    return markdown(
        ("tokens in a window", "tokens a second", "unshared memory"), rows, 0
    )


def fault_runs() -> str:
    result = store.read_object(faults.RESULT)
    rows = [
        (
            storage,
            f"{len(found['kills'])}",
            f"{found['one_process']['loss_difference_in_ten_steps']:.1e}",
            f"{found['one_process']['loss_difference']:.1e}",
            f"{found['peak_rss'] / 2**20:.0f} MiB",
        )
        for storage, found in result["storage"].items()
    ]
    head = (
        "storage",
        "kills",
        "one process resumes: losses of ten steps differ by",
        "of all steps",
        "peak memory of a process",
    )
    return markdown(head, rows, 1)
