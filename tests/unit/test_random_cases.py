"""A sample of `python -m tests.unit.random_cases`, which tries ten thousand."""

from tests.unit import random_cases


def test_random_cases_follow_the_oracle() -> None:
    found = map(random_cases.problem, random_cases.cases(96, seed=1))
    assert [wrong for wrong in found if wrong] == []
