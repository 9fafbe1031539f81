import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import ngram_table
from examples.lm import data

ROWS = 5003


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(ngram_table, "VOCAB_SIZE", 300)
    monkeypatch.setattr(ngram_table, "SEQUENCE_LENGTH", 16)
    monkeypatch.setattr(ngram_table, "BATCH_SIZE", 2)


def test_both_models_train_and_are_compared(tokens, capsys):
    ngram_table.main([f"--path={tokens}", f"--rows={ROWS}", "--steps=10"])
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:]] == ["0", "5,003"]
    with pytest.raises(SystemExit, match="`make pretrain` makes"):
        ngram_table.main(["--path=missing"])


def test_only_rows_of_bigrams_that_were_seen_have_moved(tokens):
    source = data.open_source(f"{tokens}/train/*.bin", 16, 300)
    batch = next(data.train_batches([source], 2, seed=0))
    state = ngram_table.create_state(with_bigrams=True, seed=0)
    bigrams = ngram_table.create_bigrams(ROWS)
    ids = np.unique(ngram_table.bigram_ids(batch[:, :-1], ROWS))
    _, bigrams, loss = ngram_table.train_step(state, bigrams, batch)
    assert np.isfinite(loss)
    moved = np.flatnonzero(np.any(np.asarray(bigrams.table), axis=1))
    np.testing.assert_array_equal(moved, ids[ids >= 0])


def test_ids_are_those_of_a_token_and_the_one_before_it():
    tokens = jnp.array([[1, 2, 3, 1, 2], [2, 3, 4, 4, 4]])
    ids = np.asarray(ngram_table.bigram_ids(tokens, 10**7))
    assert ids.dtype == np.int32
    assert ids[:, 0].tolist() == [-1, -1]
    assert ids[0, 1] == ids[0, 4]  # 1 2
    assert ids[0, 2] == ids[1, 1]  # 2 3
    assert ids[1, 3] == ids[1, 4]  # 4 4
    assert len(set(ids[:, 1:].ravel().tolist())) == 5
    pairs = np.stack(np.divmod(np.arange(4096 * 64), 4096), axis=1)
    hashed = np.asarray(ngram_table.bigram_ids(pairs, 10**7))[:, 1]
    assert 0 <= hashed.min() <= hashed.max() < 10**7
    # As many different ones as random hashes of 262,144 things would have.
    expected = 10**7 * -np.expm1(-len(pairs) / 10**7)
    assert len(np.unique(hashed)) > 0.99 * expected


def test_training_copies_no_table():
    # The loss reads the table as well, and XLA may keep a copy for it.
    def temporaries(rows):
        bigrams = jax.eval_shape(lambda: ngram_table.create_bigrams(rows))
        tokens = jax.ShapeDtypeStruct((2, 17), jnp.int32)
        step = ngram_table.train_step.lower(state, bigrams, tokens).compile()
        return step.memory_analysis().temp_size_in_bytes

    state = ngram_table.create_state(with_bigrams=True, seed=0)
    jax.config.update("jax_disable_most_optimizations", False)
    assert temporaries(10**7) == temporaries(10**5)
