"""``sahfl gain``: what taking part in studies gives a hospital, on its own patients."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from sahfl.errors import ConfigError


def gain(
    site: Annotated[Path, typer.Argument(help="Site file (YAML), or the folder of a simulated site: RUN/sites/NAME.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a site gains in Dice by taking part, against training alone, for each study that measured it.

    A study measures it for every method that it trains both at all sites and at this site alone. The numbers are from
    the site's own results per case and leave nothing.

    Example: sahfl gain site.yaml

    Example: sahfl gain runs/demo/sites/sah_a
    """
    from sahfl.federation.site.gain import measure_gains

    gains = measure_gains(*_place(site))
    if as_json:
        print(json.dumps([found.row() for found in gains], indent=1))
    elif not gains:
        print("nothing was measured: no study has evaluated a method here that was also trained at this site alone")
    else:
        for study in dict.fromkeys(found.study for found in gains):
            print(f"study {study[:12]}")
            print(*(f"  {found}" for found in gains if found.study == study), sep="\n")


def _place(site: Path) -> tuple[Path, str]:
    """The folder with the results, and the name of the site."""
    from sahfl.config import load_site

    if site.is_dir():
        return site, _name_in(site)
    if not site.exists():
        raise ConfigError(f"{site}: does not exist; expected a site file or the folder of a simulated site")
    config = load_site(site)
    return config.folder, config.name


def _name_in(folder: Path) -> str:
    """The name of the site whose folder it is: that of the trainings at one site alone, which only it evaluates.

    Raises:
        ConfigError: the folder has no results of an evaluation.
    """
    from sahfl.config import POOLS
    from sahfl.federation.site.case_results import FILE, read_results

    if not (folder / FILE).exists():
        raise ConfigError(
            f"{folder}: has no {FILE}; expected a site file or the folder of a site that evaluated something"
        )
    names = {kept.trained_at for kept in read_results(folder)} - {None, *POOLS}
    return names.pop() or "" if len(names) == 1 else Path(os.path.realpath(folder)).name
