"""The text that a model writes at the end of a run."""

from pathlib import Path

import numpy as np
import pytest

import examples.pretrain
from examples.lm import data, training
from examples.lm.mesh import use_mesh
from examples.lm.program import make_program

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_the_second_half_is_what_the_model_thinks_likely(config):
    config.model.update(tied=True, vocab_multiple=64)  # with rows that are padding
    with use_mesh(config) as mesh:
        program = make_program(config, mesh)
        params = program.init().params
        # Its own row is now by far the likeliest: it can only repeat itself.
        params["embed"]["embedding"] *= 1e3
        tokens = np.arange(2 * 17, dtype=np.int32).reshape(2, 17)
        drawn = np.asarray(program.sample(params, tokens))
    np.testing.assert_array_equal(drawn[:, :9], tokens[:, :9])
    np.testing.assert_array_equal(drawn[:, 9:], tokens[:, 8:9].repeat(8, axis=1))


def test_a_finished_run_shows_a_sample_of_each_arm(config, capsys):
    results = examples.pretrain.run(config, compare=True)
    shown = capsys.readouterr().out
    prompt = results["ember"].sample.prompt
    assert results["adam"].sample.prompt == prompt
    assert shown.count(f"--- A validation text ---\n{prompt}\n") == 1
    for name, result in results.items():
        assert f"--- {name} goes on ---\n{result.sample.continuation}\n" in shown


def test_no_sample_unless_it_is_wanted(config):
    tokens = data.load(**config.data)
    result = training.train(config, tokens, Path(config.workdir, "ember"))
    assert result.sample is None
