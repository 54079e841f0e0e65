"""The hooks before a commit are the commands of ``make check``."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_the_hooks_run_what_make_check_runs():
    makefile = (ROOT / "Makefile").read_text()
    (folder,) = re.findall(r"^BIN := (.+)$", makefile, re.MULTILINE)
    (recipe,) = re.findall(r"^check: .+\n((?:\t.+\n)+)", makefile, re.MULTILINE)
    commands = [line.strip().replace("$(BIN)", folder) for line in recipe.splitlines()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == commands
    assert {(hook["language"], hook["pass_filenames"]) for hook in repository["hooks"]} == {("system", False)}
