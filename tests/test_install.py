"""Which build of PyTorch ``make`` installs, and what it prints before a download."""

import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "install_torch.py"))
CPU = ["--index-url", "https://download.pytorch.org/whl/cpu"]
CASES = {
    "plain-linux": (("Linux", False, "", {}), CPU, "about 200 MB"),
    "linux-with-gpu": (("Linux", True, "", {}), [], "with CUDA from PyPI, about 3 GB"),
    "mac": (("Darwin", False, "", {}), [], "from PyPI, about 100 MB"),
    "windows": (("Windows", True, "", {}), [], "from PyPI, about 100 MB"),
    "own-index": (("Linux", False, "global.index-url='https://pypi.example.org'", {}), [], "(index-url)"),
    "own-folder": (("Linux", False, "global.find-links='/wheels'", {}), [], "(find-links)"),
    "further-index": (("Linux", False, "global.extra-index-url='https://x.org'", {}), [], "look (extra-index-url)"),
    "variable": (("Linux", False, "", {"PIP_INDEX_URL": "https://pypi.example.org"}), [], "(index-url)"),
    "no-index": (
        ("Linux", False, "", {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}),
        [],
        "(find-links, no-index)",
    ),
}


@pytest.mark.parametrize(("machine", "options", "text"), CASES.values(), ids=CASES.keys())
def test_the_build_follows_from_the_machine_and_the_settings_of_pip(machine, options, text):
    system, has_gpu, settings, environment = machine
    found, line = TOOL["choose"](system, has_gpu=has_gpu, settings=settings, environment=environment)
    assert found == options
    assert text in line


def run_main(monkeypatch, outcomes):
    """Run the tool without pip, which ends with each outcome in turn; returns the options of each call."""
    calls, left = [], list(outcomes)
    monkeypatch.setitem(TOOL["main"].__globals__, "install", lambda options: calls.append(options) or left.pop(0))
    monkeypatch.setitem(TOOL["main"].__globals__, "choose", lambda *_, **__: (CPU, "first words"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    TOOL["main"]()
    return calls


def test_the_size_is_printed_first_and_a_failed_source_of_cpu_builds_leaves_pypi(monkeypatch, capsys):
    assert run_main(monkeypatch, [False, True]) == [CPU, []]
    first, second = capsys.readouterr().out.splitlines()
    assert first == "first words; with all other libraries it takes some minutes"
    assert second.startswith("that failed; PyTorch is downloaded with CUDA from PyPI, about 3 GB")


def test_a_failure_of_both_ends_with_an_error(monkeypatch):
    with pytest.raises(SystemExit, match="pip could not install PyTorch"):
        run_main(monkeypatch, [False, False])


def test_pytorch_that_is_there_is_left_alone(monkeypatch):
    monkeypatch.setitem(TOOL["main"].__globals__, "install", lambda options: pytest.fail("pip was called"))
    TOOL["main"]()
