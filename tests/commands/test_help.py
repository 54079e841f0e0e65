"""What ``-h`` of the programs shows."""

import inspect
import re

import pytest
import typer
from sahfl_client.command import app as client
from sahfl_server.command import app as server
from typer.models import ArgumentInfo, OptionInfo

from sahfl.commands.app import app as sahfl


def commands(app, *words):
    """Every command below a program or a group of commands: its function, and the words that call it."""
    for command in app.registered_commands:
        alone = len(app.registered_commands) == 1 and not app.registered_groups
        yield command.callback, (*words, *(() if alone else (command.name or command.callback.__name__,)))
    for group in app.registered_groups:
        yield from commands(group.typer_instance, *words, group.typer_instance.info.name)


def plain(text):
    """Text without frames, line breaks and the backslash that keeps rich from taking a bracket for markup."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).replace("\\[", "[").split())


FOUND = [(app, *found) for app in (sahfl, server, client) for found in commands(app, app.info.name)]


@pytest.mark.parametrize(("app", "callback", "words"), FOUND, ids=[" ".join(words) for _, _, words in FOUND])
def test_the_help_of_a_command_shows_the_text_of_each_argument_and_option(app, callback, words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    typer.main.get_command(app).main([*words[1:], "-h"], prog_name=words[0], standalone_mode=False)
    shown = plain(capsys.readouterr().out)
    declared = inspect.signature(callback, eval_str=True).parameters.values()
    texts = [
        info.help
        for parameter in declared
        for info in parameter.annotation.__metadata__
        if isinstance(info, ArgumentInfo | OptionInfo)
    ]
    assert texts
    assert not [text for text in texts if not text or plain(text) not in shown]


def test_the_commands_of_all_programs_are_known_to_this_test():
    known = {words for _, _, words in FOUND}
    assert {
        ("sahfl", "study", "run"),
        ("sahfl", "audit", "show"),
        ("sahfl-server",),
        ("sahfl-client", "serve"),
    } <= known
