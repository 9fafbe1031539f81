"""What `--help` of a program says."""

import ast
import re

import pytest

from configs import finetune_smollm2, grpo_smollm2, pretrain_small
from examples.lm.config_check import flat
from tests.examples.pretraining import ROOT

CONFIGS = {
    "pretrain": pretrain_small,
    "finetune": finetune_smollm2,
    "grpo": grpo_smollm2,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_flags_are_shown_as_they_are_in_the_config(name: str) -> None:
    source = (ROOT / "examples" / f"{name}.py").read_text()
    text = ast.get_docstring(ast.parse(source)) or ""
    listed = text.partition("which has all of them:")[2]
    shown = re.findall(r"^ +--config\.([\w.]+)=(\(.*?\)|\S+)", listed, re.MULTILINE)
    assert len(shown) > 5
    config = flat(CONFIGS[name].get_config().to_dict())
    assert shown == [(field, str(config[field])) for field, _ in shown]
