"""What `--help` of a program says, and that a mistake of its user is one line."""

import ast
import re
import subprocess
import sys

import pytest

from configs import finetune_small, grpo_small, pretrain_small
from examples.lm.config_check import flat
from tests.examples.pretraining import ROOT

CONFIGS = {"pretrain": pretrain_small, "finetune": finetune_small, "grpo": grpo_small}


@pytest.mark.parametrize("name", CONFIGS)
def test_flags_are_shown_as_they_are_in_the_config(name: str) -> None:
    source = (ROOT / "examples" / f"{name}.py").read_text()
    text = ast.get_docstring(ast.parse(source)) or ""
    listed = text.partition("which has all of them:")[2]
    shown = re.findall(r"^ +--config\.([\w.]+)=(\(.*?\)|\S+)", listed, re.MULTILINE)
    assert len(shown) > 5
    config = flat(CONFIGS[name].get_config().to_dict())
    assert shown == [(field, str(config[field])) for field, _ in shown]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/pretrain_small.py", "--stepz=3"], "flag 'stepz'"),
        (["--config=configs/none.py"], "No such file or directory: 'configs/none.py'"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments: list[str], message: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "examples.pretrain", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert message in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
