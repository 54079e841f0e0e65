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

from sahfl.commands.study import CELLS, work_text
from sahfl.errors import ConfigError, SahflError

if TYPE_CHECKING:
    from sahfl.config.files import Kind
    from sahfl.data.survey import SiteSurvey

NEXT: dict[Kind, tuple[str, ...]] = {
    "study": (
        "next: sahfl study {file} --plan    what will run",
        "next: sahfl study {file}           to the report; Ctrl-C stops it, the same command goes on",
    ),
    "site": (
        "next: sahfl check {file}     looks at every scan",
        "next: sahfl doctor {file}    looks at the whole site, once kit names the folder from the coordinating centre",
    ),
    "consortium": ("next: sahfl provision {file} --out keys",),
}
"""What to do with each kind of file."""


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
    blood: Annotated[
        list[str] | None,
        typer.Option(
            help="A site's labels that are blood, by name or value, if its masks have others too; once for each site.",
            metavar="NAME=LABEL,...",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="With --consortium: name or address of the server, as the sites reach it.")
    ] = "localhost",
) -> None:
    """Look at your scans and write a commented settings file that runs as it is.

    Example: sahfl init study.yaml --site bern=/data/bern --site graz=/data/graz

    Example: sahfl init site.yaml --site-file --site bern=/data/bern --blood bern=hematoma,2

    Example: sahfl init consortium.yaml --consortium --host fl.example.org --site bern --site graz
    """
    from sahfl.proposal import consortium_text, propose, site_text, study_text

    if site_file and consortium:
        raise ConfigError("init: --site-file and --consortium write two kinds of file; name one of them")
    if file.exists():
        raise ConfigError(f"{file}: is there already; name another file, or delete it")
    if not file.parent.is_dir():
        raise ConfigError(f"{file.parent}: is no folder; make it, or name another file")
    kind: Kind = "consortium" if consortium else "site" if site_file else "study"
    surveys: list[SiteSurvey] = []
    if consortium:
        text = consortium_text(_name_of(file), host, [_checked(name) for name in site])
    else:
        paths = _paths(site, one=site_file)
        surveys = _surveys(paths, _labels(blood or (), paths))
        study = None if site_file else propose(_name_of(file), surveys)
        text = site_text(surveys[0], file.parent) if study is None else study_text(study, file.parent)
    _write(file, kind, text)
    print(file)
    for line in NEXT[kind]:
        print(line.format(file=shlex.quote(str(file))), file=sys.stderr)


def _write(file: Path, kind: Kind, text: str) -> None:
    """Write a settings file that loads; of a study, show how long it would run."""
    from sahfl.atomic import write_atomic
    from sahfl.config import Study, parse
    from sahfl.config.files import KINDS
    from sahfl.settings_file import read_text

    written = read_text(text, file)
    where = f"the text for {file}"
    settings = parse(KINDS[kind], written.content, where=where, folder=file.parent, lines=written.lines)
    if isinstance(settings, Study):
        from sahfl.federation.server.plan import plan

        print(work_text(settings, plan(settings, CELLS)), file=sys.stderr)
    write_atomic(file, text)


def _paths(given: Sequence[str], *, one: bool) -> dict[str, Path]:
    """The path of each site; ``one`` if there can be only one site."""
    sites = dict(map(_pair, given))
    if len(sites) < len(given):
        raise ConfigError("init: --site names a site twice; give each site one path")
    if one and len(sites) > 1:
        raise ConfigError(f"init: --site-file is for one hospital, got {', '.join(sites)}; name one --site")
    return sites


def _pair(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--site: got {text!r}, expected NAME=PATH, such as bern=/data/bern")
    return _checked(name), Path(path).expanduser()


def _labels(given: Sequence[str], sites: dict[str, Path]) -> dict[str, tuple[int | str, ...]]:
    """The labels that are blood at each site that has a choice of them."""
    found: dict[str, tuple[int | str, ...]] = {}
    for text in given:
        name, _, labels = text.partition("=")
        parts = [part.strip() for part in labels.split(",")]
        if not all(parts):
            raise ConfigError(f"--blood: got {text!r}, expected NAME=LABEL,LABEL, such as bern=hematoma or bern=1,2")
        if name not in sites:
            raise ConfigError(f"--blood: names {name!r}, which no --site names; they name {', '.join(sites)}")
        if name in found:
            raise ConfigError(f"--blood: names {name} twice; list its labels once, with commas")
        found[name] = tuple(int(part) if part.isdecimal() else part for part in parts)
    return found


def _checked(name: str) -> str:
    from sahfl.config.grid import NO_SITES
    from sahfl.problems import FORMS
    from sahfl.section import NAME

    if name in NO_SITES:
        raise ConfigError(f"--site: no site can have the name {name}, which means something else in results")
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"--site: got the name {name!r}, expected {FORMS[NAME]}")
    return name


def _name_of(file: Path) -> str:
    """The file's name as the name of a study or a consortium."""
    name = re.sub(r"[^a-z0-9_-]+", "-", file.stem.lower()).strip("-_")[:40]
    return name if name not in ("", "study") else "first-study"


def _surveys(sites: dict[str, Path], blood: dict[str, tuple[int | str, ...]]) -> list[SiteSurvey]:
    """Look at all sites' scans; one error names every site whose scans are not usable."""
    from sahfl.console import counting
    from sahfl.data.survey import survey

    console, found, problems = Console(stderr=True), [], []
    with counting(list(sites), console, unit="scans") as show:
        for name, path in sites.items():
            try:
                found.append(survey(path, name, partial(show, name), blood=blood.get(name)))
            except SahflError as error:
                choose = "blood: [" in str(error) and name not in blood
                problems.append(f"{error}; here: --blood {name}=LABEL,..." if choose else str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    console.print(_table(found))
    for one in found:
        if one.no_blood:
            values = ", ".join(map(str, one.no_blood))
            text = f"voxels of value {values} count as no blood; name their labels in --blood too if they are"
            print(f"note: {one.site}: {text}", file=sys.stderr)
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
