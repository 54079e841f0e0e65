"""What the programs of sahfl have in common: the form of their commands, shared options, and how they end."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.utils import get_params_from_function

from sahfl.atomic import OWNER_ONLY_FOLDER
from sahfl.errors import ConfigError, RunFailed, SahflError

INTERRUPTED = 130
Datalist = Annotated[
    Path | None, typer.Option(help="Datalist of NIfTI scans; takes the place of data.path in the study file.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes; by default one per site, two per core at most.")
]
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_PLACE = {
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ELOOP),
}
"""Errors of the operating system about a named path that cannot be read or written."""


class Command(TyperCommand):
    """A command whose arguments keep their help texts, which typer < 0.21 loses with click 8.5.

    This class goes when flwr allows typer 0.21.
    """

    def __init__(self, name: str | None, *, callback: Callable[..., Any], **settings: Any) -> None:
        super().__init__(name, callback=callback, **settings)
        declared = get_params_from_function(callback)
        for argument in self.params:
            if isinstance(argument, TyperArgument):
                argument.help = declared[argument.name].default.help


class WithDefault(TyperGroup):
    """Commands of which the first runs if none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the first command before arguments that name none."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


def new_app(name: str, help: str, *, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """A program or a group of commands; the traceback of a bug stays as Python prints it."""
    return typer.Typer(
        name=name,
        cls=cls,
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(app: typer.Typer, *, no_place: int = ConfigError.exit_code) -> None:
    """Run a program, and turn deliberate errors and those of the disk into one message and an exit code.

    ``no_place`` is the exit code if a named path cannot be read or written. What the program writes is for its owner
    only, also through libraries.
    """
    os.umask(0o777 & ~OWNER_ONLY_FOLDER)
    try:
        app()
    except KeyboardInterrupt:  # before typer is at work, which makes the same of it
        sys.exit(INTERRUPTED)
    except SahflError as error:
        _end(_with_options(str(error)), error.exit_code)
    except OSError as error:
        if error.errno in NO_PLACE and error.filename is not None:
            _end(f"{error.filename}: {error.strerror}; name another path", no_place)
        if error.errno not in NO_ROOM:
            raise
        _end(f"{error.strerror}; make room, then go on", RunFailed.exit_code)


def _with_options(message: str) -> str:
    """A message whose settings in parentheses, which functions have too, are named as options."""
    return re.sub(r"\((out|replace)\)", r"(--\1)", message)


def naming_paths(file: Path, datalist: Path | None = None) -> AbstractContextManager[None]:
    """Let errors about paths of a settings file name their lines, unless the option --datalist names the path."""
    from sahfl.settings_file import naming_lines

    return naming_lines(file) if datalist is None else nullcontext()


def read_fold(text: str) -> int | None:
    """Read the option ``--fold``: a fold counted from 0, or None for all.

    Raises:
        ConfigError: the text is neither a number nor ``all``.
    """
    if text == "all":
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    raise ConfigError(f"--fold: got {text!r}, expected a number from 0, or all")


def _end(message: str, exit_code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)
