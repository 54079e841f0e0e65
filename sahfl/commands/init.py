"""``sahfl init``: a first settings file, from the scans that are there."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from sahfl.errors import ConfigError, SahflError

if TYPE_CHECKING:
    from sahfl.data.survey import SiteSurvey

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def init(
    file: Annotated[Path, typer.Argument(help="Settings file to write (YAML); an existing file is left as it is.")],
    site: Annotated[
        list[str],
        typer.Option(
            help="A site and its scans, once for each site; NAME alone with --consortium.", metavar="NAME=PATH"
        ),
    ],
    site_file: Annotated[
        bool, typer.Option("--site-file", help="Write the file of a hospital that takes part in a deployment.")
    ] = False,
    consortium: Annotated[
        bool, typer.Option("--consortium", help="Write the file from which sahfl provision makes keys.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="With --consortium: name or address of the server, as the sites reach it.")
    ] = "localhost",
) -> None:
    """Look at your scans and write a commented settings file that runs as it is.

    Example: sahfl init study.yaml --site bern=/data/bern --site graz=/data/graz

    Example: sahfl init site.yaml --site-file --site bern=/data/bern

    Example: sahfl init consortium.yaml --consortium --host fl.example.org --site bern --site graz
    """
    from sahfl.atomic import write_atomic

    if site_file and consortium:
        raise ConfigError("init: --site-file and --consortium write two kinds of file; name one of them")
    if file.exists():
        raise ConfigError(f"{file}: is there already; name another file, or delete it")
    if not file.parent.is_dir():
        raise ConfigError(f"{file.parent}: is no folder; make it, or name another file")
    if consortium:
        kind, text = "consortium", _consortium_text(_name_of(file), host, [_checked(name) for name in site])
        after = _AFTER_CONSORTIUM
    else:
        sites = dict(map(_pair, site))
        if len(sites) < len(site):
            raise ConfigError("init: --site names a site twice; give each site one path")
        if site_file and len(sites) > 1:
            raise ConfigError(f"init: --site-file is for one hospital, got {', '.join(sites)}; name one --site")
        surveys = _surveys(sites)
        kind = "site" if site_file else "study"
        text = _site_text(surveys[0], file.parent) if site_file else _study_text(file, surveys)
        after = _AFTER_SITE if site_file else _AFTER_STUDY
    _check(text, file, kind)
    write_atomic(file, text)
    print(file)
    for line in after:
        print(line.format(file=shlex.quote(str(file))), file=sys.stderr)


_AFTER_STUDY: tuple[str, ...] = (
    "next: sahfl study {file} --plan    what will run",
    "next: sahfl study {file}           to the report; Ctrl-C stops it, the same command goes on",
)
_AFTER_SITE: tuple[str, ...] = (
    "next: sahfl check {file}     looks at every scan",
    "next: sahfl doctor {file}    looks at the whole site, once kit names the folder from the coordinating centre",
)
_AFTER_CONSORTIUM: tuple[str, ...] = ("next: sahfl provision {file} --out keys",)


def _pair(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--site: got {text!r}, expected NAME=PATH, such as bern=/data/bern")
    return _checked(name), Path(path).expanduser()


def _check(text: str, file: Path, kind: str) -> None:
    """Read the text as the file that it is for; ConfigError if it has a problem."""
    from sahfl.config import Consortium, Section, SiteFile, Study, parse
    from sahfl.settings_file import read_text

    models: dict[str, type[Section]] = {"study": Study, "site": SiteFile, "consortium": Consortium}
    settings = read_text(text, file)
    parse(models[kind], settings.content, where=f"the text for {file}", folder=file.parent, lines=settings.lines)


def _checked(name: str) -> str:
    from sahfl.config.grid import EACH, OTHERS
    from sahfl.config.training import POOLS

    if name in (EACH, OTHERS, *POOLS):
        raise ConfigError(f"--site: no site can have the name {name}, which means something else in results")
    if not NAME.fullmatch(name):
        raise ConfigError(f"--site: got the name {name!r}, expected 1 to 40 lower-case letters, digits, '-' and '_'")
    return name


def _name_of(file: Path) -> str:
    """The file's name as the name of a study or a consortium."""
    name = re.sub(r"[^a-z0-9_-]+", "-", file.stem.lower()).strip("-_")[:40]
    return name if name not in ("", "study") else "first-study"


def _surveys(sites: dict[str, Path]) -> list[SiteSurvey]:
    """Look at all sites' scans; one error names every site whose scans are not usable."""
    from sahfl.console import counting
    from sahfl.data.survey import survey

    console, found, problems = Console(stderr=True), [], []
    with counting(list(sites), console, unit="scans") as show:
        for name, path in sites.items():
            try:
                found.append(survey(path, name, partial(show, name)))
            except SahflError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    console.print(_table(found))
    for one in found:
        if one.n_unmasked:
            print(f"warning: {one.site}: {one.n_unmasked} scans have no mask and are left out", file=sys.stderr)
        if one.n_unreadable:
            opened = len(one.sizes) + one.n_unreadable
            text = f"{one.n_unreadable} of {opened} scans could not be opened; sahfl check of a site file says why"
            print(f"warning: {one.site}: {text}", file=sys.stderr)
    return found


def _table(surveys: list[SiteSurvey]) -> Table:
    names = ("site", "format", "scans", "patients", "slices", "pixels in mm", "slices in mm")
    table = Table(*names, box=None, pad_edge=False)
    for one in surveys:
        slices = _range([size.shape[2] for size in one.sizes])
        pixels, gaps = (_range([round(size.spacing_mm[axis], 2) for size in one.sizes]) for axis in (0, 2))
        table.add_row(one.site, one.format, str(one.n_scans), str(one.n_patients), slices, pixels, gaps)
    return table


def _range(values: Sequence[float]) -> str:
    if not values:
        return "unknown"
    return f"{min(values):g}" if min(values) == max(values) else f"{min(values):g} to {max(values):g}"


def _study_text(file: Path, surveys: list[SiteSurvey]) -> str:
    from sahfl.config import Study, parse
    from sahfl.proposal import estimate_seconds, propose, study_text
    from sahfl.schemas import schema_of
    from sahfl.settings_file import read_text

    proposal = propose(_name_of(file), surveys)
    text = study_text(proposal, beside=file.parent, schema=schema_of("study"))
    study = parse(Study, read_text(text, file).content, where=str(file), folder=file.parent)
    minutes = estimate_seconds(study, surveys) / 60
    print(f"the study takes about {max(1, round(minutes))} min on this machine", file=sys.stderr)
    return text


def _site_text(found: SiteSurvey, beside: Path) -> str:
    from sahfl.proposal import path_text, quoted
    from sahfl.schemas import schema_of

    return f"""\
# yaml-language-server: $schema={schema_of("site")}
# A hospital's own file, written by sahfl init. It never leaves the hospital. What studies may ask, and what may leave,
# stands under policy; every default allows the least, and docs/policy.md explains each setting.
name: {quoted(found.site)} # the site's name in studies

folder: {quoted(found.site + "-site")} # the site's working folder, beside this file

data:
  source: folder
  path: {path_text(found.path, beside)} # {found.format}, {found.n_scans} scans of {found.n_patients} patients

kit: null # the folder that the coordinating centre makes for this site with sahfl provision
"""


def _consortium_text(name: str, host: str, sites: list[str]) -> str:
    from sahfl.proposal import quoted
    from sahfl.schemas import schema_of

    return f"""\
# yaml-language-server: $schema={schema_of("consortium")}
# The hospitals that train together, and their server, written by sahfl init.
name: {quoted(name)} # in every certificate

server:
  host: {quoted(host)} # as the sites reach it
  port: 8443

sites: [{", ".join(map(quoted, sites))}] # their names in studies
"""
