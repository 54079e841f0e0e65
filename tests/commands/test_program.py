"""How the programs end: one clear line and an exit code, or the traceback of a bug."""

import errno

import pytest

from sahfl.commands.program import new_app, run
from sahfl.errors import RunError, RunFailed

ENDS = {
    "deliberate": (RunError("the port is taken"), 2, "the port is taken"),
    "failed": (RunFailed("below the quorum"), 3, "below the quorum"),
    "full disk": (
        OSError(errno.ENOSPC, "No space left on device", "x"),
        3,
        "No space left on device; make room, then go on",
    ),
    "no place": (OSError(errno.EACCES, "Permission denied", "/x"), 2, "/x: Permission denied; name another path"),
}


def program(error):
    app = new_app("program", "Fails.")

    @app.command()
    def fail():
        raise error

    return app


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch):
    monkeypatch.setattr("sys.argv", ["program"])


@pytest.mark.parametrize(("error", "exit_code", "line"), ENDS.values(), ids=ENDS.keys())
def test_what_is_no_bug_is_one_line_and_an_exit_code(capsys, error, exit_code, line):
    with pytest.raises(SystemExit) as ended:
        run(program(error))
    assert ended.value.code == exit_code
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_a_service_may_end_otherwise_where_a_path_cannot_be_used():
    with pytest.raises(SystemExit) as ended:
        run(program(PermissionError(errno.EACCES, "Permission denied", "/x")), no_place=3)
    assert ended.value.code == 3


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EBADF, "Bad file descriptor")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run(program(error))


def test_an_interrupt_is_exit_code_130():
    with pytest.raises(SystemExit) as ended:
        run(program(KeyboardInterrupt()))
    assert ended.value.code == 130
