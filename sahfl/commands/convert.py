"""``sahfl convert``: scans of any format as the NIfTI that sahfl works on, to annotate exactly that."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from sahfl.errors import ConfigError

MOST_LISTED = 20


def convert(
    path: Annotated[
        Path,
        typer.Argument(
            help="A DICOM folder of one patient or of several, a file of a scan, a datalist, or any other source."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must be empty, or not be there.")],
) -> None:
    """Write scans as the NIfTI that sahfl works on (HU, same geometry), each with its mask if there is one.

    Example: sahfl convert /data/bern/patient-7 to-annotate

    Example: sahfl convert /data/bern to-annotate
    """
    from sahfl.console import counting
    from sahfl.data.convert import LIST, SITE, find_scans
    from sahfl.data.convert import convert as write

    if not path.exists():
        raise ConfigError(f"{path}: got nothing (no such file or folder), expected scans; correct the path")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is there already; name another folder, or empty it")
    with TemporaryDirectory() as unpacked, counting([SITE], Console(stderr=True), unit="scans") as show:
        found = write(find_scans(path, Path(unpacked)), path, out, on_case=partial(show, SITE))
    refused, unmasked = ([one for one in found if not one.image], [one for one in found if one.image and not one.mask])
    print(out / LIST)
    for one in found:
        for note in one.notes:
            print(f"note: case {one.case.id}: {note}", file=sys.stderr)
    for one in (*refused, *unmasked)[:MOST_LISTED]:
        what = "no mask" if one.image else "left out"
        print(f"warning: {what}: {one.problem}", file=sys.stderr)
    counts = f"{len(found) - len(refused)} of {len(found)} scans written, {len(unmasked)} of them without a mask"
    print(counts, file=sys.stderr)
    if unmasked:
        print(f"next: draw each missing mask on its .nii.gz, and save it as NAME_mask.nii.gz in {out}", file=sys.stderr)
    print(f"next: sahfl init study.yaml --site NAME={shlex.quote(str(out / LIST))}", file=sys.stderr)
