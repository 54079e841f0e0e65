"""The shape of the code: imports point left, engines stay in their rooms, files and functions stay small."""

import ast
import re
import statistics
import subprocess
import sys

import pytest
from harness.import_graph import (
    FILES,
    LAUNCHERS,
    MODULES,
    PACKAGE,
    ROOT,
    circle,
    import_graph,
    imports,
    inside,
    module_of,
    packages_around,
    reach,
)

FEDERATION = ["tensors", "metrics", "protocol", "confirmations", "masked_terms", "masked_messages", "masked_vectors"]
FEDERATION += ["masked_signatures", "signatures", "turns"]
FEDERATION += ["site_ranks", "requests", "flower"]
FEDERATION += [
    f"site.{name}"
    for name in (
        "audit",
        "state_file",
        "device",
        "kept",
        "round_list",
        "answered",
        "known_roster",
        "starts",
        "feedback",
        "known_bases",
        "known_policy",
        "known_studies",
        "private",
        "declared",
        "secret",
        "masked_once",
        "masked",
        "ledger",
        "withdrawn",
        "folder_check",
        "sanity",
    )
]
FEDERATION += [f"site.{name}" for name in ("case_results", "gain", "site", "withdrawal", "site_check", "kinds")]
FEDERATION += [f"site.{name}" for name in ("policy", "guard", "dry_run", "app")]
FEDERATION += ["workers"]
FEDERATION += [
    f"server.{name}" for name in ("used_rounds", "aggregate", "replies", "mailbox", "schedule", "reuse", "plan")
]
FEDERATION += [f"server.{name}" for name in ("studies", "base", "roster", "cell", "confirm", "masked_progress")]
FEDERATION += [f"server.{name}" for name in ("masked_steps", "masked_round", "masked_evaluation", "rounds")]
FEDERATION += ["server.evaluation", "server.cells"]
FEDERATION += ["server.coordinator", "server.app"]
ORDER = [
    "errors",
    "environment",
    "regular_files",
    "csv_table",
    "seeds",
    "atomic",
    "process",
    "events",
    "log_lines",
    "last_errors",
    "masking",
    "payload",
    "aggregation",
    "adapters.updates",
    "adapters.methods",
    "adapters.files",
    "bases",
    "schemas",
]
ORDER += [
    "monai_parts",
    "unet",
    "model",
    "section",
    "section_tree",
    "meant",
    "problems",
    "settings_file",
    "data",
    "config",
    "cell_names",
    "trust",
    "adapters",
    "training",
    "task",
    "networks",
]
ORDER += ["statistics", "evaluation", "report", "tracking", "run", "results", "proposal"]
ORDER += [f"federation.{name}" for name in FEDERATION]
ORDER += ["pacs", "prediction", "export", "doctor", "simulation", "progress", "console", "finished_run", "local_study"]
ORDER += ["commands", "cli"]
"""Layers from left to right, by their names below ``sahfl``. A module belongs to the longest name that fits it, so that
one file of a package may stand to the left of the rest."""
FREE_OF_FLWR = ["sahfl.run", "sahfl.results", "sahfl.task", "sahfl.networks"]
HOSPITAL = ["sahfl.federation.site.app", "sahfl.federation.workers.worker", "sahfl_client"]
"""Start of the names of what runs at a hospital."""
ONLY_IN = {
    "cryptography": {"trust", "masking"},
    "flwr": {"federation", "simulation", "sahfl_server", "sahfl_client"},
    "fcntl": {"process"},
    "signal": {"process", "federation"},
    "typer": {"commands", "sahfl_server", "sahfl_client"},
    "yaml": {"settings_file"},
    "jinja2": {"report"},
    "matplotlib": {"report"},
    "pandas": {"finished_run"},
    "highdicom": {"data"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "pydicom": {"data", "pacs"},
    "dicomweb_client": {"pacs"},
    "rich": {"console", "local_study", "commands", "sahfl_server", "sahfl_client"},
}
AUDITED = {"payload.py", "masking", "aggregation", "statistics", "report"}
"""Modules that a hospital reads for itself: no deep-learning library, so that they run and are read without one."""
PRIVATE_FLWR = re.compile(r"^flwr\.(?!app$|serverapp$|clientapp$)")
GRAPH = import_graph() | {"sahfl": set()}  # the package imports what it offers when it is used (tests/test_api.py)
APART = {f"sahfl.{name}" for name in ORDER if "." in name and not name.startswith("federation.")}
"""Files that stand to the left of the rest of their package."""
FROM_PYTHON = ["sahfl.finished_run", "sahfl.local_study"]
"""What ``sahfl.simulate``, ``sahfl.load`` and a ``Run`` consist of."""
OPTION = re.compile(r"(?<![\w-])--[a-z]")
WHOLE_COMMAND = re.compile(r"sahfl [a-z]+ --[a-z]+|flower-supernode: .*|dcmdjpeg or gdcmconv --raw")
"""Options that stand with their program."""
PACKAGES = sorted(name for name, path in MODULES.items() if path.name == "__init__.py")
EMPTY = {"sahfl", *(name for name in PACKAGES if not GRAPH[name])}
"""Packages that import nothing of the project: their files have places in ORDER, they need none."""


def stands_apart(module):
    return module in EMPTY or not APART.isdisjoint([*packages_around(module), module])


def layer_of(module):
    """Place of a module in ORDER."""
    names = [*packages_around(module), module]
    layers = [name.removeprefix("sahfl.") for name in names if name.removeprefix("sahfl.") in ORDER]
    assert layers, f"{module} has no place in ORDER"
    return ORDER.index(layers[-1])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_engines_stay_in_their_rooms(path):
    parts = module_of(path).split(".")
    room = parts[0] if parts[0] in LAUNCHERS else parts[min(1, len(parts) - 1)]
    for name in imports(path):
        top = name.partition(".")[0]
        assert room in ONLY_IN.get(top, {room}), f"{room} must not import {top}"
        assert top not in LAUNCHERS or top == room, f"{room} must not import {name}"


@pytest.mark.parametrize("module", sorted(name for name in MODULES.keys() - EMPTY if name.startswith("sahfl.")))
def test_imports_point_left(module):
    for other in GRAPH[module] - EMPTY:
        assert layer_of(other) <= layer_of(module), f"{module} must not import {other}"


def test_no_file_of_the_project_is_left_out_of_the_checks_because_git_ignores_its_name():
    listed = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False).stdout == ""


def test_no_module_imports_itself_through_others():
    assert not circle(GRAPH)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_rooms_of_a_package_form_no_circle(package):
    rooms = {
        name: {other for other in others if not stands_apart(other)}
        for name, others in GRAPH.items()
        if not stands_apart(name)
    }
    assert not circle(inside(rooms, package))


def files_below(names):
    return [m for m in MODULES if any(m == n or m.startswith((f"{n}.", f"{n}_")) for n in names)]


def test_what_the_run_and_its_results_need_is_free_of_flwr():
    roots = files_below(FREE_OF_FLWR)
    users = [m for m in reach(GRAPH, roots) if any(n.partition(".")[0] == "flwr" for n in imports(MODULES[m]))]
    assert not users


def test_what_a_hospital_loads_never_imports_the_simulation():
    loaded = reach(GRAPH, files_below(HOSPITAL))
    assert {"sahfl.federation.site.guard", "sahfl.federation.workers.worker_process"} <= loaded
    assert not [name for name in loaded if name.split(".")[:2] == ["sahfl", "simulation"]]


def loaded_by(roots):
    """Names of all modules that a fresh Python holds after it imported these."""
    code = f"import sys, {', '.join(roots)}\nprint(*sys.modules)"
    paths = [str(ROOT), *(str(folder.parent) for folder in LAUNCHERS.values())]
    code = f"import sys; sys.path[:0] = {paths}\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_run_and_its_results_loads_no_flwr():
    assert "flwr" not in loaded_by(files_below(FREE_OF_FLWR))


def test_importing_what_a_hospital_runs_loads_no_simulation():
    loaded = loaded_by(name for name in files_below(HOSPITAL) if not name.endswith("__main__"))
    assert "sahfl.federation.site.app" in loaded
    assert not [name for name in loaded if name.startswith("sahfl.simulation")]


def test_only_one_package_touches_private_parts_of_flwr():
    users = {path.parent for path in FILES if any(PRIVATE_FLWR.match(name) for name in imports(path))}
    assert users == {PACKAGE / "federation" / "flower"}


@pytest.mark.parametrize("name", sorted(AUDITED))
def test_what_a_hospital_audits_needs_no_deep_learning_library(name):
    paths = sorted((PACKAGE / name).rglob("*.py")) if (PACKAGE / name).is_dir() else [PACKAGE / name]
    for path in paths:
        assert not {n.partition(".")[0] for n in imports(path)} & {"torch", "monai", "flwr", "safetensors"}, path


def test_importing_the_audited_modules_loads_no_deep_learning_library():
    loaded = loaded_by(
        [
            "sahfl.payload",
            "sahfl.masking.collector",
            "sahfl.aggregation.rules",
            "sahfl.statistics",
            "sahfl.report.page",
            "sahfl.report.summary",
        ]
    )
    assert not {"torch", "monai", "flwr"} & set(loaded)


def texts(path):
    """Every text of a file but its docstrings; of an f-string the parts between the values."""
    for node in ast.walk(ast.parse(path.read_text())):
        quoted = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for child in () if quoted else ast.iter_child_nodes(node):
            if isinstance(child, ast.Constant) and isinstance(child.value, str):
                yield child.value


def test_what_python_calls_names_no_option_of_a_command_in_its_errors():
    reached = sorted(reach(GRAPH, FROM_PYTHON))
    assert {"sahfl.run.folder", "sahfl.prediction.networks", "sahfl.config.files"} <= set(reached)
    found = [(name, text) for name in reached for text in texts(MODULES[name])]
    assert not [(name, text) for name, text in found if OPTION.search(WHOLE_COMMAND.sub("", text))]


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


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not in a checkout")
def test_git_ignores_no_file_of_the_project():
    command = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""
