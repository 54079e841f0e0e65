"""The wheel that a hospital installs without a network: everything in it, and three commands from it."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = ("sahfl", "sahfl-server", "sahfl-client")
PACKAGES = {"sahfl": ROOT / "sahfl", "sahfl_server": ROOT / "server/sahfl_server"}
PACKAGES |= {"sahfl_client": ROOT / "client/sahfl_client"}
OFFLINE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
OFFLINE |= {"PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, with the setuptools that is here: a build in place leaves folders behind, and races."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    waste = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("sahfl", "server", "client"):
        shutil.copytree(ROOT / name, source / name, ignore=waste)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, source], check=True, env=OFFLINE, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_and_data_file(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in PACKAGES.items():
        files = {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
        assert files
        assert {f"{package}/{path.relative_to(folder)}" for path in files} <= inside


def test_the_wheel_holds_nothing_else(wheel):
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_the_wheel_installs_three_commands_without_a_network(wheel, tmp_path):
    venv.create(tmp_path / "venv", symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / "venv/bin/python", "install", "--quiet", "--no-index"]
    options = ["--find-links", wheel.parent, "--no-deps", "sahfl"]
    subprocess.run([*pip, *options], check=True, env=OFFLINE, timeout=300)
    made = {path.name for path in (tmp_path / "venv/bin").glob("sahfl*")}
    assert made == set(COMMANDS)
    code = "import sahfl, sahfl_server, sahfl_client; print(sahfl.__file__)"
    python = [tmp_path / "venv/bin/python", "-I", "-c", code]
    result = subprocess.run(python, capture_output=True, text=True, check=True, env=OFFLINE)
    assert result.stdout.startswith(str(tmp_path))
