"""How commands end: exit status and one line on stderr, never a traceback."""

import pytest

from espnet2_sepx.errors import UserError, run_cli


def ending(main, capsys):
    with pytest.raises(SystemExit) as end:
        run_cli(main)
    return end.value.code, capsys.readouterr().err


def test_the_status_of_main_is_the_exit_status(capsys):
    assert ending(lambda: None, capsys) == (0, "")
    assert ending(lambda: 1, capsys) == (1, "")


def test_a_user_error_is_one_line(capsys):
    def main():
        raise UserError("x.wav: expected mono, found 2 channels; mix it down")

    expected = "error: x.wav: expected mono, found 2 channels; mix it down\n"
    assert ending(main, capsys) == (2, expected)


def test_an_interrupt_says_how_to_go_on(capsys):
    def main():
        raise KeyboardInterrupt

    status, message = ending(main, capsys)
    assert status == 130
    assert "run the same command again" in message


def test_a_bug_keeps_its_traceback():
    def main():
        raise KeyError("a bug of ours")

    with pytest.raises(KeyError):
        run_cli(main)
