"""The commands of docs/pods.md and their output."""

from pathlib import Path

OUTPUTS = Path(__file__).parent
# Config and slice by name of the output.
CASES = {
    "1b_v5p": ("pretrain_1b_pod", "v5p:4x4x4"),
    "8b_v5p": ("pretrain_8b_pod", "v5p:8x8x4"),
    "8b_v6e": ("pretrain_8b_pod", "v6e:16x16"),
    "124m_v5e": ("pretrain_124m", "v5e:2x4"),
}


def parts() -> dict[str, str]:
    """Returns the generated parts of pages by name."""
    return {f"pods.{name}": part(name) for name in CASES}


def part(name: str) -> str:
    command = f"python -m {' '.join(arguments(name))}"
    output = (OUTPUTS / f"{name}.txt").read_text()
    return f"```sh\n{command}\n```\n\n```text\n{output}```"


def arguments(name: str) -> list[str]:
    """Returns the arguments of Python for a case."""
    config, topology = CASES[name]
    options = [
        f"--config=configs/{config}.py",
        f"--config.cost_report_topology={topology}",
    ]
    return ["examples.pretrain", *options]
