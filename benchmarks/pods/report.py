"""The command of docs/pods.md and its output."""

from pathlib import Path

OUTPUT = Path(__file__).with_name("1b_v5p.txt")
ARGUMENTS = [
    "examples.pretrain",
    "--config=configs/pretrain_1b_pod.py",
    "--config.cost_report_topology=v5p:4x4x4",
]


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    command = f"python -m {' '.join(ARGUMENTS)}"
    text = f"```sh\n{command}\n```\n\n```text\n{OUTPUT.read_text()}```"
    return {"pods.1b_v5p": text}
