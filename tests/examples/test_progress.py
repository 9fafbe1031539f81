"""What is seen of something that says nothing itself."""

from examples.lm.progress import clock


def test_a_clock_is_shown_and_goes_away(capsys):
    with clock("compiling"):
        shown = capsys.readouterr().err
    assert shown.strip() == "compiling: 00:00"
    assert capsys.readouterr().err.split("\r")[-1].strip() == ""


def test_no_clock_where_another_process_shows_it(capsys):
    with clock("compiling", disable=True):
        pass
    assert capsys.readouterr().err == ""
