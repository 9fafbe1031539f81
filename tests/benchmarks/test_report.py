"""Documents are what `make report` makes of the results."""

import pytest

from benchmarks import report


def test_documents_are_those_of_the_results() -> None:
    stale = [p.name for p, text in report.pages().items() if p.read_text() != text]
    assert not stale, f"`make report` changes {stale}"


def test_a_part_that_does_not_exist_is_refused() -> None:
    page = "<!-- begin: a.b -->\n\nold\n\n<!-- end -->\n"
    new = "<!-- begin: a.b -->\n\nnew\n\n<!-- end -->\n"
    assert report.fill(page, {"a.b": "new"}) == new
    with pytest.raises(ValueError, match=r"the part 'a\.b', but"):
        report.fill(page, {"c": "new"})
