"""``sahfl check`` and ``sahfl doctor``: is a settings file, a site's data, a whole site or a server in order."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sahfl.commands.program import Datalist, naming_paths
from sahfl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sahfl.config import Study
    from sahfl.section import Section

OF_A_SITE = {"kit": ("kit",), "data": ("data", "path"), "folder": ("folder",), "device": ("device",)}
"""The setting of a site file that a check of the doctor is about."""
OF_A_SERVER = {"kit": ("kit",), "folder": ("folder",)}
"""The same for a server file."""
MOST_REFUSED = 20
"""Refused cases that the terminal names; the page has all."""


def check(
    file: Annotated[
        Path | None, typer.Argument(help="Study, site, server or consortium file (YAML); told apart by content.")
    ] = None,
    datalist: Datalist = None,
    rules: Annotated[bool, typer.Option("--rules", help="Print the table of data rules (Markdown) instead.")] = False,
) -> None:
    """Check a study, server or consortium file, or the data of a site.

    A study, server or consortium file is printed as YAML with every default filled in; a study's scans must be where
    it names them, and its base network must fit. For a site file, every scan is checked against the data rules, and
    checks.json and checks.html are written into its folder; the exit code is 2 if the site may not train.

    Example: sahfl check configs/demo.yaml

    Example: sahfl check site.yaml
    """
    from sahfl.config import kind_of, load_consortium, load_server, load_study

    if rules:
        print(rules_table(), end="")
    elif file is None:
        raise ConfigError("check: expected a study file or a site file; see sahfl check -h")
    elif kind_of(file) == "study":
        study = load_study(file, datalist=datalist)
        with naming_paths(file, datalist):
            _check_study(study)
    elif kind_of(file) == "server":
        _print_whole(load_server(file))
    elif datalist is not None:
        raise ConfigError(f"{file}: --datalist is for study files; a site file names its own under data.path")
    elif kind_of(file) == "consortium":
        _print_whole(load_consortium(file))
    else:
        with naming_paths(file):
            _check_site(file)


def rules_table() -> str:
    """The table as Markdown, for the documents."""
    from sahfl.data.rules import RULES

    head = ["| rule | severity | meaning | remedy |", "|---|---|---|---|"]
    return "\n".join(head + [f"| `{r.id}` | {r.severity} | {r.meaning} | {r.remedy} |" for r in RULES]) + "\n"


def _check_study(study: Study) -> None:
    few: dict[str, int] = {}
    if study.data.source != "sites":
        from sahfl.networks import read_base
        from sahfl.settings_file import about_setting

        with about_setting("base"):
            if study.base:
                read_base(study)
        few = _sites_with_few_patients(study)
    _print_whole(study)
    for site, n in few.items():
        text = f"{n} patients in finetune.folds: {study.finetune.folds}, so that some folds test nobody there"
        print(f"warning: {site}: {text}; choose fewer", file=sys.stderr)
    unread = "" if study.data.source == "phantom" else "; no scan was read, which sahfl check SITE_FILE does"
    print(f"the settings are right{unread}", file=sys.stderr)


def _sites_with_few_patients(study: Study) -> dict[str, int]:
    """Patients of the fine-tuning sites that have fewer than folds; every site's list of scans is read, and no scan.

    Raises:
        DataError: a site has no scans, or its list of them is faulty; the message has the problems of all.
    """
    problems, few = list[str](), dict[str, int]()
    sections = study.data.for_sites(study.sites, study=study.name, seed=study.seed)
    with TemporaryDirectory() as folder:  # for a zip
        for site, section in sections.items():
            try:
                cases = () if section.n_made else section.glance(site, Path(folder) / site)
            except DataError as error:
                problems.append(str(error))
                continue
            patients = {case.patient for case in cases}
            known = section.n_made or (len(patients) if "" not in patients else None)
            if known and known < study.finetune.folds and site in study.finetune.sites:
                few[site] = known
    if problems:
        raise DataError("\n".join(problems))
    return few


def _print_whole(settings: Section) -> None:
    from sahfl.settings_file import as_yaml

    print(as_yaml(settings), end="")


def _check_site(file: Path) -> None:
    from sahfl.config import load_site
    from sahfl.console import counting, verdict_table
    from sahfl.federation.site.dry_run import policy_lines
    from sahfl.federation.site.site_check import check_site

    config = load_site(file)
    with counting([config.name], Console(stderr=True)) as show:
        verdict = check_site(config, on_case=lambda done, total: show(config.name, done, total))
    print(*policy_lines(config.policy), sep="\n")
    Console().print(verdict_table(verdict.checks))
    for warning in verdict.warnings:
        print(f"warning: {warning}")
    print(*_refused_lines(verdict.checks, config.folder), sep="\n", end="")
    print("cases, pictures and remedies:", file=sys.stderr)
    print(verdict.page)
    if not verdict.may_train:
        raise typer.Exit(2)


def _refused_lines(checks: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """A line for each refused case with the rules that refused it, and where the files of a case are named."""
    errors = {rule["rule"] for rule in checks["rules"] if rule["severity"] == "error"}
    refused = [case for case in checks["cases"] if not case["usable"]]
    for case in refused[:MOST_REFUSED]:
        rules = dict.fromkeys(found["rule"] for found in case["findings"] if found["rule"] in errors)
        yield f"refused: {case['case']}: {', '.join(rules)}"
    if len(refused) > MOST_REFUSED:
        yield f"refused: {len(refused) - MOST_REFUSED} more"
    if refused:
        yield f"the files of each case stand in {folder / 'manifest.json'}"
        yield ""


def doctor(
    file: Annotated[Path, typer.Argument(help="Site file or server file (YAML); told apart by content.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a monitoring program.")] = False,
) -> None:
    """Look at everything that a site or a server needs, one line each, with one remedy for each problem.

    It looks at keys and certificates, the way to the server, both clocks, versions, disk, memory, GPU, data, policy and
    audit log; at a server also at its port, its names and its queue. It changes nothing, and contacts the kit's server
    only. Exit code 2 if something failed. Run it as the user of the service: root may read what the service may not.

    Example: sahfl doctor site.yaml

    Example: sahfl doctor server.yaml --json
    """
    from sahfl import doctor
    from sahfl.config import kind_of, load_server, load_site

    kind = kind_of(file)
    if kind == "site":
        findings = doctor.naming_settings(doctor.examine_site(load_site(file)), file, OF_A_SITE)
    elif kind == "server":
        findings = doctor.naming_settings(doctor.examine_server(load_server(file)), file, OF_A_SERVER)
    else:
        raise ConfigError(f"doctor: got {file}, a {kind} file, expected a site file or a server file")
    if as_json:
        print(json.dumps(doctor.as_json(findings, file=str(file), kind=kind), indent=1))
    else:
        print("\n".join(doctor.as_lines(findings)))
    if not doctor.healthy(findings):
        raise typer.Exit(2)
