"""The shape of the code: imports point left, engines stay in their rooms, files and functions stay small."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import sahfl

PACKAGE = Path(sahfl.__file__).parent
ROOT = PACKAGE.parent
ORDER = [
    "errors",
    "seeds",
    "atomic",
    "config",
    "trust",
    "data",
    "model",
    "adapters",
    "training",
    "payload",
    "task",
    "networks",
    "aggregation",
]
ORDER += ["statistics", "evaluation", "events", "log_lines", "report", "tracking", "run", "results"]
ORDER += ["federation", "prediction", "export", "doctor", "simulation", "progress", "console", "commands", "cli"]
ONLY_IN = {
    "cryptography": {"trust"},
    "flwr": {"federation", "simulation", "sahfl_server", "sahfl_client"},
    "typer": {"cli", "commands", "sahfl_server", "sahfl_client"},
    "yaml": {"config"},
    "jinja2": {"report"},
    "matplotlib": {"report"},
    "highdicom": {"data"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "pydicom": {"data"},
    "rich": {"console", "commands", "cli", "sahfl_server", "sahfl_client"},
}
AUDITED = {"payload.py", "aggregation", "statistics", "report"}
"""Modules that a hospital reads for itself: no deep-learning library, so that they run and are read without one."""
LAUNCHERS = {"sahfl_server": ROOT / "server" / "sahfl_server", "sahfl_client": ROOT / "client" / "sahfl_client"}
"""Packages of the commands of a deployment; they stand to the right of all of sahfl, and never import each other."""
FILES = sorted([*PACKAGE.rglob("*.py"), *(path for folder in LAUNCHERS.values() for path in folder.rglob("*.py"))])
PRIVATE_FLWR = re.compile(r"^flwr\.(?!app$|serverapp$|clientapp$)")


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names if node.module == "sahfl"}
    return found


def layer_of(path):
    for name, folder in LAUNCHERS.items():
        if path.is_relative_to(folder):
            return name
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_left_and_engines_stay_in_their_rooms(path):
    layer = layer_of(path)
    if layer == "__init__":
        return
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert layer in ONLY_IN.get(top, {layer}), f"{layer} must not import {top}"
        assert top not in LAUNCHERS or top == layer, f"{layer} must not import {name}"
        if top == "sahfl" and rest and rest != "__version__" and layer not in LAUNCHERS:
            assert ORDER.index(rest.split(".")[0]) <= ORDER.index(layer), f"{layer} must not import {name}"


def test_only_one_package_touches_private_parts_of_flwr():
    users = {path.parent for path in FILES if any(PRIVATE_FLWR.match(name) for name in imports(path))}
    assert users == {PACKAGE / "federation" / "flower"}


@pytest.mark.parametrize("name", sorted(AUDITED))
def test_what_a_hospital_audits_needs_no_deep_learning_library(name):
    paths = sorted((PACKAGE / name).rglob("*.py")) if (PACKAGE / name).is_dir() else [PACKAGE / name]
    for path in paths:
        assert not {n.partition(".")[0] for n in imports(path)} & {"torch", "monai", "flwr", "safetensors"}, path


def test_importing_the_audited_modules_loads_no_deep_learning_library():
    code = (
        "import sys\n"
        "import sahfl.payload, sahfl.aggregation, sahfl.statistics, sahfl.report\n"
        "print([name for name in ('torch', 'monai', 'flwr') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_the_median_function_has_ten_lines_at_most():
    lengths = [
        node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    assert statistics.median(lengths) <= 10


FORBIDDEN = {
    "pickle": re.compile(r"\bpickle\.load|\bimport pickle|allow_pickle=True"),
    "torch.load": re.compile(r"\btorch\.load\("),
    "yaml.load": re.compile(r"\byaml\.load\("),
    "archives": re.compile(r"\bextractall\("),
    "evaluation of text": re.compile(r"(?<![.\w])(eval|exec)\("),
    "shell": re.compile(r"\bos\.system\(|shell=True"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_received_can_become_code(what):
    assert not [str(path) for path in FILES if FORBIDDEN[what].search(path.read_text())]


def test_tests_have_about_a_line_for_each_line_of_code():
    code = sum(len(path.read_text().splitlines()) for path in FILES)
    tests = sum(len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py"))
    assert tests >= 0.7 * code
