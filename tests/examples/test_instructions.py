import numpy as np
import pytest

pytest.importorskip("tunix")

from tokenizers import Tokenizer

from examples.lm.tokenizer import END_OF_TEXT
from examples.post_training import instructions, sorting
from examples.tools import tokenize_shards

SOURCE = '''
def add(x, y=1, *, z: int = 2):
    """Adds.

    Three numbers.
    """

def silent(x): ...

class A:
    async def get(self):
        "Gets it."
'''


def train_tokenizer(text: str) -> Tokenizer:
    return Tokenizer.from_str(tokenize_shards.train_vocabulary(iter([text]), 300))


def test_tasks_are_the_signatures_of_documented_functions():
    tasks = instructions.from_source([SOURCE, SOURCE, "not Python ("])
    assert tasks == [
        ("# Adds.\n", "def add(x, y=1, *, z: int=2):"),
        ("# Gets it.\n", "def get(self):"),
    ]


def test_only_the_answer_and_its_end_have_a_loss():
    tokenizer = train_tokenizer(SOURCE)
    tasks = instructions.from_source([SOURCE])
    longest = len(tokenizer.encode("".join(tasks[0])).ids) + 1
    tokens, mask = instructions.encode(tokenizer, tasks, longest)
    assert tokens.shape == mask.shape == (2, longest)
    for task, row, has_loss in zip(tasks, tokens, mask, strict=True):
        answer = tokenizer.decode(row[has_loss], skip_special_tokens=False)
        assert answer == task.answer + END_OF_TEXT
        before = np.argmax(has_loss)
        assert tokenizer.decode(row[:before]) == task.prompt
    # A task that does not fit is left out.
    assert len(instructions.encode(tokenizer, tasks, longest - 1).tokens) == 1
    with pytest.raises(ValueError, match="fits into sequence_length, which is 3"):
        instructions.encode(tokenizer, tasks, 3)


def test_some_tasks_are_text_again():
    tasks = [instructions.Task(f"# {n}\n", f"def f{n}():") for n in range(9)]
    tokenizer = train_tokenizer("".join(map("".join, tasks)))
    batch = instructions.encode(tokenizer, tasks, 48)
    assert instructions.some(tokenizer, batch, 3) == [tasks[0], tasks[4], tasks[8]]
    assert instructions.some(tokenizer, batch, 20) == tasks
    empty = [instructions.Task("", "a"), instructions.Task("# b\n", "")]
    batch = instructions.encode(tokenizer, empty, 48)
    assert instructions.some(tokenizer, batch, 2) == empty[1:]
    batch = instructions.encode(tokenizer, empty[:1], 48)
    assert instructions.some(tokenizer, batch, 2) == []


def test_an_epoch_has_every_task_once():
    tasks = instructions.Batch(np.arange(6)[:, None], np.ones((6, 1), bool))
    batches = instructions.batches(tasks, 2, seed=0)
    epochs = [
        np.concatenate([next(batches).tokens for _ in range(3)]).ravel().tolist()
        for _ in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(6))
    assert epochs[0] != epochs[1]


def test_tasks_are_read_from_json_lines(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\n' * 2)
    assert instructions.read(str(path)) == [("a", "b")] * 2
    path.write_text('{"prompt": "a", "answer": "b"}\n')
    with pytest.raises(ValueError, match="with prompt and completion"):
        instructions.read(str(path))
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ValueError, match="holds 1 tasks"):
        instructions.read(str(path))


def test_sorting_is_rewarded_by_the_place():
    prompts = ["12 7 103 =", "5 5 4 ="]
    assert sorting.reward(prompts, ["7 12 103", "4 5 5"]) == [1, 1]
    assert sorting.reward(prompts, ["7 103 12", "5"]) == [1 / 3, 0]
    assert sorting.reward(prompts, ["", "= <pad> 5"]) == [0, 1 / 3]


def test_sorting_has_a_loss_on_the_answer():
    tokenizer = sorting.Tokenizer(200)
    tokens, mask = sorting.supervised_batch(tokenizer, ["12 7 103 =", "5 5 4 ="])
    texts = [tokenizer.decode(row) for row in tokens]
    assert texts == ["12 7 103 = 7 12 103", "5 5 4 = 4 5 5"]
    answers = [tokenizer.decode(r[m]) for r, m in zip(tokens, mask, strict=True)]
    assert answers == ["7 12 103", "4 5 5"]
