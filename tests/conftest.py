"""What all tests share."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.in_process import federate, federate_once, scans, whole  # noqa: F401
from harness.tiny_study import TINY, changed

import sahfl.federation  # first of all: it turns Flower's telemetry off before anything imports flwr
from sahfl import cli

os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side; results must not depend on the number of threads


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """What a program that is called in a test does to this process's logging and umask ends with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    os.umask(umask)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def tiny() -> dict[str, Any]:
    return changed(TINY)


@pytest.fixture
def study_file(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return path


@pytest.fixture
def realct() -> Path:
    """Folder of real annotated CT slices; they are not part of the project (non-commercial terms)."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("SAHFL_REALCT", root.parent / "shared" / "realct"))
    if not (folder / "datalist.json").is_file():
        pytest.skip("no real annotated slices here; set SAHFL_REALCT to their folder")
    return folder


@pytest.fixture
def sahfl(monkeypatch, capsys, tmp_path):
    """Run the command's entry point in an empty folder: (exit code, stdout, stderr)."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sahfl", *map(str, arguments)])
        with pytest.raises(SystemExit) as info:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return info.value.code or 0, out, err

    return run
