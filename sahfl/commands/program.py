"""What the programs of sahfl have in common: the form of their commands, and how they end."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer
from typer.core import TyperArgument, TyperCommand
from typer.utils import get_params_from_function

from sahfl.errors import ConfigError, RunFailed, SahflError

INTERRUPTED = 130
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS}
"""What the operating system says of a path that was named and cannot be read or written."""


class Command(TyperCommand):
    """A command whose arguments keep their help texts.

    typer < 0.21 sets an argument's help and then calls click's constructor, which since click 8.5 sets it to None where
    it is not passed on. Goes when flwr allows typer 0.21.
    """

    def __init__(self, name: str | None, *, callback: Callable[..., Any], **settings: Any) -> None:
        super().__init__(name, callback=callback, **settings)
        declared = get_params_from_function(callback)
        for argument in self.params:
            if isinstance(argument, TyperArgument):
                argument.help = declared[argument.name].default.help


def new_app(name: str, help: str) -> typer.Typer:
    """A program or a group of commands; the traceback of a bug stays as Python prints it."""
    return typer.Typer(
        name=name,
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(app: typer.Typer, *, no_place: int = ConfigError.exit_code) -> None:
    """Entry point: turn deliberate errors, and those of the disk, into one clear message and an exit code.

    Args:
        app: the program.
        no_place: exit code where a path cannot be read or written.
    """
    try:
        app()
    except KeyboardInterrupt:  # before typer is at work, which makes the same of it
        sys.exit(INTERRUPTED)
    except SahflError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        if error.errno in NO_PLACE and error.filename is not None:
            _end(f"{error.filename}: {error.strerror}; name another path", no_place)
        if error.errno not in NO_ROOM:
            raise
        _end(f"{error.strerror}; make room, then go on", RunFailed.exit_code)


def _end(message: str, exit_code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)
