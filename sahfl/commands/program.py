"""What the programs of sahfl have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer.core import TyperArgument, TyperCommand
from typer.utils import get_params_from_function


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
