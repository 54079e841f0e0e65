"""``sahfl phantom``: a cohort of synthetic head CTs as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sahfl.errors import ConfigError

if TYPE_CHECKING:
    from sahfl.config import Study
    from sahfl.data.phantom import CohortSpec


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder for the cohort; an interrupted one is continued.")],
    study: Annotated[
        Path | None, typer.Option(help="Study file whose data section lists the sites; by default those of the demo.")
    ] = None,
) -> None:
    """Write a cohort of synthetic head CTs as NIfTI with a datalist, and pictures of it.

    Example: sahfl phantom phantoms/demo

    Example: sahfl phantom phantoms/mine --study configs/demo.yaml
    """
    from sahfl.config import load_study
    from sahfl.console import counting
    from sahfl.data.phantom import demo_sites, write_sites
    from sahfl.report.cohort import draw_cohort

    specs = demo_sites() if study is None else plan_sites(load_study(study))
    with counting([spec.site for spec in specs], Console(stderr=True)) as show:
        print(write_sites(out, specs, on_case=show))
    for picture in draw_cohort(out, specs):
        print(picture)


def plan_sites(study: Study) -> tuple[CohortSpec, ...]:
    """The cohorts of a study file: the very cases that ``simulate`` gives its sites.

    Raises:
        ConfigError: the study's scans are not phantoms.
    """
    from sahfl.data.sources.phantom import StudyScansPhantom

    if not isinstance(study.data, StudyScansPhantom):
        raise ConfigError(f"study {study.name}: data.source is {study.data.source!r}, expected 'phantom'")
    scans = study.data.for_sites(study.data.site_names(), study=study.name, seed=study.seed)
    return tuple(of.cohort(site) for site, of in scans.items())
