"""The documents: every command, file and number in them exists."""

import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import yaml
from harness.documents import PAGES, ROOT, TASKS, blocks
from harness.tiny_study import TINY

from sahfl.adapters import exchanged
from sahfl.config import (
    AdapterTuning,
    Consortium,
    FinetuneConfig,
    HostileAct,
    ServerConfig,
    SiteConfig,
    SitePolicy,
    Study,
    kind_of,
    load_consortium,
    load_server,
    load_site,
    load_study,
    parse,
)
from sahfl.data.manifest import read_datalist
from sahfl.data.rules import RULES
from sahfl.data.sources.table import SOURCES
from sahfl.federation.protocol import evaluation_reply, n_bytes, train_reply
from sahfl.networks import fine_tuned_network, whole_network
from sahfl.payload import Header
from sahfl.results.findings import CLAIMS, WEAKEST_FIRST
from sahfl.results.verdicts import MARGIN
from sahfl.section import Section
from sahfl.statistics.sums import EvaluationSums

README, PRIVACY = PAGES["README.md"], PAGES["docs/privacy.md"]
RUNBOOKS = {name: PAGES[name] for name in ("SECURITY.md", "client/README.md", "server/README.md")}
SAHFL = Path(sys.executable).with_name("sahfl")
DAEMONS = {"sahfl-server": "sahfl_server", "sahfl-client": "sahfl_client"}
PAGES_OF_USERS = "\n".join(text for name, text in PAGES.items() if name != "CHANGELOG.md")
COMMANDS = re.findall(r"^\$ (.+?)(?:\s+#.*)?$", PAGES_OF_USERS, re.MULTILINE)
COMMANDS += [text for text in re.findall(r"`(sahfl [a-z][^`]*)`", PAGES_OF_USERS) if "..." not in text]
OF_THE_SYSTEM = {"openssl", "sha256sum", "useradd", "install", "cp", "chown", "chmod", "sudoedit", "systemctl"}
OF_THE_SYSTEM |= {"journalctl", "timedatectl", "tar", "mv", "python3.11", "python", "source"}
"""What the documents take from Linux; a name that is not here is a slip."""


FILES = {
    "study": (load_study, "(simulate|study)"),
    "site": (load_site, "check"),
    "server": (load_server, "check"),
    "consortium": (load_consortium, "provision"),
}


@cache
def help_of(*command):
    return subprocess.run([SAHFL, *command, "-h"], capture_output=True, text=True, check=True).stdout


@cache
def help_of_daemon(program):
    words = [program, "serve", "-h"] if program == "sahfl-client" else [program, "-h"]
    code = f"import sys; from {DAEMONS[program]}.main import main; sys.argv = {words!r}; main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_each_command_of_the_documents_exists(command):
    program, *arguments = shlex.split(re.sub(r"^sudo (-u \S+ )?", "", command))
    program = program.removeprefix("/opt/sahfl/bin/")
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if program in OF_THE_SYSTEM:
        named = [
            argument for argument in arguments if argument.startswith(("client/", "server/", "configs/", "benchmarks/"))
        ]
        assert all((ROOT / argument).is_file() for argument in named)
        return
    assert program == "sahfl" or program in DAEMONS
    known = help_of(*words_of(arguments)) if program == "sahfl" else help_of_daemon(program)
    for argument in arguments[1:]:
        if argument.startswith("--"):
            assert argument in known
        elif argument.startswith("configs/"):
            assert (ROOT / argument).is_file()


def words_of(arguments):
    """The words that name a command; ``sahfl study FILE`` is short for ``sahfl study run FILE``."""
    if arguments[0] == "study" and len(arguments) > 1:
        return ["study", arguments[1] if arguments[1] in ("list", "cancel", "archive", "withdraw") else "run"]
    return arguments[: 2 if arguments[0] in ("audit", "private") else 1]


def test_the_readme_and_the_pages_by_task_name_every_command_of_the_program():
    listed = subprocess.run([SAHFL, "-h"], capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"^\W*([a-z]+)  +[A-Z]", listed.split("Commands", 1)[1], re.MULTILINE)
    assert commands
    named = re.findall(r"(?:\$ |`)sahfl ([a-z]+)", "".join(PAGES[name] for name in ("README.md", *TASKS)))
    assert not set(commands) - set(named)


def test_every_example_in_a_help_text_is_a_command_of_the_program():
    of_a_run = ("init", "simulate", "study", "report", "predict", "export", "adapt")
    for command in (*of_a_run, "check", "provision", "renew", "revoke", "status", "doctor", "fetch", "push"):
        words = ["study", "run"] if command == "study" else [command]
        examples = re.findall(r"Example: (sahfl \S+)", help_of(*words))
        assert examples
        assert {example.split()[1] for example in examples} == {command}


DAEMON_LOG = re.compile(r"LogLine\(\s*\"(\w+)\"")


def events_of(*folders):
    text = "".join(path.read_text() for folder in folders for path in (ROOT / folder).glob("*.py"))
    return set(DAEMON_LOG.findall(text))


OF_ANY_LOG = {"environment_ignored", "log", "log_line_lost"}


def events_in(name):
    table = RUNBOOKS[name].split("| event | means | do |", 1)[1].split("\n\n", 1)[0]
    return set(re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in table.splitlines()[2:])))


def test_the_runbook_of_a_hospital_explains_every_line_of_its_log():
    assert events_in("client/README.md") == events_of("client/sahfl_client") | {"stopped", "failed", *OF_ANY_LOG}


def test_the_runbook_of_the_server_explains_every_line_of_its_log():
    named = {"connected", "refused", "tls_refused"}  # by the gate and the listener
    of_runs = set(DAEMON_LOG.findall((ROOT / "sahfl" / "log_lines.py").read_text()))
    assert of_runs > OF_ANY_LOG
    assert events_in("server/README.md") == (events_of("server/sahfl_server") - {"stopping"}) | named | of_runs


MESSAGES = re.compile(r"^\| `([^`]+)`", re.MULTILINE)


@pytest.mark.parametrize("name", ["client/README.md", "server/README.md"])
def test_every_message_in_a_table_of_troubles_is_one_of_the_program(name):
    source = " ".join(
        path.read_text() for folder in ("sahfl", "client", "server") for path in (ROOT / folder).rglob("*.py")
    )
    source = re.sub(r"[\"']\s*\n\s*f?[\"']", "", source)
    troubles = RUNBOOKS[name].split("When something is wrong", 1)[1]
    messages = MESSAGES.findall(troubles)
    assert len(messages) > 5
    for message in messages:
        for part in message.split("..."):
            assert part.strip(" :") in source, f"{name}: {part!r}"


def test_the_tree_is_that_of_the_modules_docstrings():
    page = (ROOT / "docs" / "architecture.md").read_text()
    made = runpy.run_path(str(ROOT / "docs" / "tree.py"))
    assert made["BEGIN"] + made["tree"]() + made["END"] in page, "run: python docs/tree.py"


def test_each_file_that_the_page_on_the_code_names_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:sahfl|server|client|tests)/[^`\s]+)`", page)
    assert len(named) > 20
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_each_file_of_settings_is_right_and_says_what_to_do_with_it(path):
    load, command = FILES[kind_of(path)]
    assert load(path)
    assert re.search(rf"sahfl {command} configs/{path.name}", path.read_text())


def test_the_example_of_a_server_file_shows_every_setting_of_a_server():
    text = (ROOT / "configs" / "server.example.yaml").read_text()
    assert set(yaml.safe_load(text)) == set(ServerConfig.model_fields)


def test_the_example_of_a_site_file_shows_every_setting_of_a_site():
    text = (ROOT / "configs" / "site.example.yaml").read_text()
    assert set(yaml.safe_load(text)) == set(SiteConfig.model_fields) - {"simulated"}  # no hospital can set it


def test_the_example_of_a_consortium_file_shows_every_setting():
    def keys(section, settings):
        assert set(settings) == set(section.model_fields)
        for name, field in section.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                keys(field.annotation, settings[name])

    keys(Consortium, yaml.safe_load((ROOT / "configs" / "consortium.example.yaml").read_text()))


def test_the_example_of_a_site_file_shows_every_setting_of_the_policy_at_its_default():
    shown = load_site(ROOT / "configs" / "site.example.yaml").policy
    assert shown == SitePolicy()
    assert shown.model_fields_set == set(SitePolicy.model_fields)


def flat(section, before=""):
    """Names and values of a section's settings, those of sections inside it with a point."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        yield from flat(value, f"{before}{name}.") if isinstance(value, Section) else [(before + name, value)]


def test_every_setting_of_the_policy_is_documented_with_its_default():
    text = (ROOT / "docs" / "policy.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", text.split("## Settings")[1].split("##")[0], re.MULTILINE))
    settings = dict(flat(SitePolicy()))
    assert list(rows) == list(settings)
    for name, value in settings.items():
        if isinstance(value, bool | int | float):
            assert rows[name].replace(" ", "") == str(value).replace("True", "true").replace("False", "false")


def test_the_documents_count_the_rules_of_the_data_checks():
    assert f"[{len(RULES)} rules](docs/data-checks.md)" in README
    assert f"[{len(RULES)} rules](data-checks.md)" in PAGES["docs/data.md"]


def test_the_demo_is_the_one_that_the_documents_describe():
    study = load_study(ROOT / "configs" / "demo.yaml")
    assert (len(study.pretrain.sites), len(study.finetune.sites), study.finetune.folds) == (4, 3, 2)
    assert sum(study.data.sites[site].n_cases for site in study.finetune.sites) == 30
    assert len({study.data.sites[site].profile for site in study.data.sites}) == 7
    assert [method.id for method in study.finetune.methods] == ["zero_shot", "cp_lora-r8", "full"]
    assert study.evaluation.replicates == 1000


def test_the_bytes_in_the_tables_of_what_leaves_are_those_of_the_demo():
    study = load_study(ROOT / "configs" / "demo.yaml")
    base = exchanged.read(whole_network(study.views, study.model, study.seed))
    adapter = exchanged.read(fine_tuned_network(study.views, study.model, base, study.finetune.methods[1], study.seed))
    header = Header(study.fingerprint(), stage="finetune", method="cp_lora-r8", fold=0, round=1, base="0" * 64)
    sizes = [n_bytes(train_reply(header, tensors, n_volumes=8, loss=0.5, seconds=5.0)) for tensors in (base, adapter)]
    sums = EvaluationSums.zero(study.evaluation).to_array()
    sizes.append(n_bytes(evaluation_reply(header, sums)))
    expected = {f"{sizes[0] / 1e6:.0f} MB", f"{sizes[1] / 1e3:.0f} kB", f"{sizes[2] / 1e3:.0f} kB"}
    for page in (README, PRIVACY):
        table = page.split("## What leaves a hospital", 1)[1].split("\n## ")[0]
        rows = re.findall(r"^\| ((?:pretr|CP-|eval|fine-t).*) \|$", table, re.MULTILINE)
        assert len(rows) == 3
        assert {row.rsplit("|", 1)[1].strip() for row in rows} == expected


def test_the_example_of_a_datalist_is_one(tmp_path):
    (example,) = blocks(PAGES["docs/data.md"], "json")
    (tmp_path / "datalist.json").write_text(example)
    (case,) = read_datalist(tmp_path / "datalist.json", "site_name")
    assert case.image == tmp_path / "a.nii.gz"


def test_the_example_of_ranks_is_one():
    (example,) = [code for code in blocks(PAGES["docs/methods.md"], "yaml") if "site_ranks" in code]
    (method,) = yaml.safe_load(example)["finetune"]["methods"]
    assert AdapterTuning.model_validate(method).site_ranks == {"bern": 2, "graz": 16}


@pytest.mark.parametrize("name", ["docs/methods.md", "docs/comparisons.md"])
def test_the_examples_of_a_grid_are_some(name):
    (example,) = [code for code in blocks(PAGES[name], "yaml") if "grid:" in code]
    settings = {"sites": ["bern", "linz"], "rounds": 1, "local": {"steps": 1}} | yaml.safe_load(example)["finetune"]
    methods = {method.id for method in parse(FinetuneConfig, settings, where=name).methods}
    pooled = {"docs/methods.md": "cp_lora-r8", "docs/comparisons.md": "full"}[name]
    assert {f"{pooled}-pooled", f"{pooled}-at-bern", "cp_lora-r64-repeat2"} <= methods


def test_the_findings_in_the_documents_are_those_that_are_judged():
    verdicts, text = (ROOT / "docs" / "comparisons.md").read_text().split("## Findings", 1)
    found = re.findall(r"^\| `(\w+)` \| .+? \| ?(.*?) \|$", text, re.MULTILINE)
    assert [id_ for id_, _ in found] == [claim.id for claim in CLAIMS]
    assert [bool(paper) for _, paper in found] == [claim.paper is not None for claim in CLAIMS]
    assert f"{MARGIN} or more below" in verdicts
    assert {verdict for verdict in WEAKEST_FIRST if f"| {verdict} |" in verdicts} == set(WEAKEST_FIRST)


def test_every_setting_says_what_it_means():
    def settings(section, path=""):
        for name, field in section.model_fields.items():
            yield f"{path}{name}", field

    for section in [
        Study,
        *(field.annotation for _, field in settings(Study) if hasattr(field.annotation, "model_fields")),
        Consortium,
        *(field.annotation for _, field in settings(Consortium) if hasattr(field.annotation, "model_fields")),
        *(section for source in SOURCES for section in (source.study, source.site) if section),
    ]:
        for name, field in settings(section):
            assert field.description, f"{section.__name__}.{name} has no docstring"


def test_ci_runs_the_check_and_the_tests():
    script = (ROOT / ".ci" / "run").read_text()
    assert [line for line in script.splitlines() if line.startswith("make")] == ["make check", "make test"]


def test_the_constraints_pin_what_the_project_pins():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert pins["torch"] == "2.13.0"
    assert pins["flwr"] == "1.42.0"
    assert yaml.__version__ == pins["PyYAML"]


def test_the_example_of_hostile_sites_is_a_part_of_a_study_file_and_the_table_lists_every_act():
    text = (ROOT / "docs" / "defences.md").read_text()
    study = parse(Study, TINY | yaml.safe_load(re.search(r"```yaml\n(.+?)```", text, re.DOTALL).group(1)), where="docs")
    assert study.hostile
    acts = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.+?) \|", text.split("| act |")[1], re.MULTILINE)[:6]))
    assert acts == list(get_args(HostileAct))
