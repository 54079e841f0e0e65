"""The first files of a newcomer: a study with settings that fit one's own scans, a site file, a consortium file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sahfl.config import ViewsConfig
from sahfl.data.manifest import PATIENTS_FROM
from sahfl.data.survey import SiteSurvey
from sahfl.errors import DataError
from sahfl.schemas import schema_of
from sahfl.settings_file import quoted

USUAL = ViewsConfig()
"""The views of the shipped base network's training; their field holds a head."""
LEAST_EXTENT_MM = 40.0
"""Shorter scans have no coronal and sagittal views to speak of."""
ROUNDS, STEPS = 5, 16


@dataclass(frozen=True)
class Proposal:
    """The settings that depend on the scans."""

    name: str
    surveys: tuple[SiteSurvey, ...]
    views: ViewsConfig
    folds: int

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites' names."""
        return tuple(survey.site for survey in self.surveys)


def propose(name: str, surveys: Sequence[SiteSurvey]) -> Proposal:
    """Settings for a study on these scans.

    Views: the size that holds the largest head found, up to that of the shipped base network; axial slices alone if a
    scan is shorter than ``LEAST_EXTENT_MM``. Folds: those of the lists of scans; otherwise 5 from 50 patients at every
    site on, 3 from 6 on, and 2 below.

    Raises:
        DataError: a site has a single patient or no readable scan, or the sites' lists of folds differ.
    """
    problems = []
    for found in surveys:
        if not found.sizes:
            problems.append(f"site {found.site}: none of {found.n_unreadable} scans could be opened")
        if found.n_patients < 2:
            text = (
                f"site {found.site}: its {found.n_scans} scan(s) are of {found.n_patients} patient, expected at least 2"
            )
            problems.append(f"{text}, one to test on; add patients, or correct {PATIENTS_FROM} where that is wrong")
    listed = {found.site: found.n_folds for found in surveys if found.n_folds is not None}
    if listed and (len(set(listed.values())) > 1 or len(listed) < len(surveys)):
        each = ", ".join(f"{site} {n}" for site, n in listed.items())
        problems.append(
            f"lists of folds: {each}; expected the same number at every site, or no list (splits_final.json)"
        )
    if problems:
        raise DataError("\n".join(problems))
    extents = np.array([size.extent_mm for found in surveys for size in found.sizes])
    x, y, z = (min(_sixteens(mm), most) for mm, most in zip(extents.max(axis=0), USUAL.size, strict=True))
    short = bool((extents[:, 2] < LEAST_EXTENT_MM).any())
    views = ViewsConfig(size=(x, y, z), weights={"axial": 1.0} if short else USUAL.weights)
    fewest = min(found.n_patients for found in surveys)
    folds = next(iter(listed.values()), 5 if fewest >= 50 else 3 if fewest >= 6 else 2)
    return Proposal(name, tuple(surveys), views, folds)


def _sixteens(mm: float) -> int:
    """The pixels of a length, as a multiple of 16 and at least 32."""
    return max(32, 16 * -(-int(mm / USUAL.spacing_mm) // 16))


def study_text(proposal: Proposal, beside: Path) -> str:
    """The study file (YAML); paths below the folder ``beside`` are relative to it."""
    views, names = proposal.views, ", ".join(map(quoted, proposal.sites))
    size = ", ".join(map(str, views.size))
    weights = ", ".join(f"{view}: {weight}" for view, weight in views.weights.items())
    why = " # the scans are too short for coronal and sagittal views" if len(views.weights) == 1 else ""
    scans = "\n".join(
        f"    {quoted(found.site)}: {_path_text(found.path, beside)} # {_scans_text(found)}"
        for found in proposal.surveys
    )
    blood = ", ".join(f"{quoted(found.site)}: {_labels_text(found)}" for found in proposal.surveys if found.blood)
    blood = f"\n  blood: {{{blood}}} # the labels that are blood; all others count as none" if blood else ""
    return f"""\
# yaml-language-server: $schema={schema_of("study")}
# A first study on your own scans, proposed by sahfl init. Every setting that is not here has a default: sahfl check
# prints all of them, and docs/reference.md explains them.
name: {quoted(proposal.name)} # of the run's folder and the report
seed: 1 # every random number follows from it

data:
  source: folder
  sites: # what lies at a path is recognised: DICOM, nnU-Net, images and masks, a list (JSON, CSV) or a zip
{scans}{blood}

views: # each scan is cut into slices of these views
  weights: {{{weights}}}{why}
  spacing_mm: {views.spacing_mm} # that of the base network; smaller pixels show more and take longer
  size: [{size}] # pixels along x, y and z around the head's centre

base: phantom # starts from a small network trained on simulated patients; none: from scratch, with method full alone

finetune:
  sites: [{names}]
  folds: {proposal.folds} # each patient is tested once, by a network that has not seen the patient
  rounds: {ROUNDS} # of training at every site and averaging
  local: {{steps: {STEPS}}} # per round; more rounds or steps usually help until Dice stops to grow
  methods:
    - {{method: zero_shot}} # the base network as it is
  grid: # each is trained twice, because one training gives no verdict
    - {{method: cp_lora, rank: 8, repeats: 2}} # small adapters: only their factors would leave a site
    - {{method: full, repeats: 2}} # the whole network, for comparison
    # What does each site gain by taking part? The same method, trained at each site alone:
    # - {{method: cp_lora, rank: 8, trained_at: each, repeats: 2}}
"""


def site_text(found: SiteSurvey, beside: Path) -> str:
    """A hospital's site file (YAML); paths below the folder ``beside`` are relative to it."""
    blood = f"\n  blood: {_labels_text(found)} # the labels that are blood" if found.blood else ""
    return f"""\
# yaml-language-server: $schema={schema_of("site")}
# A hospital's own file, written by sahfl init. It never leaves the hospital. What studies may ask, and what may leave,
# stands under policy; every default allows the least, and docs/policy.md explains each setting.
name: {quoted(found.site)} # the site's name in studies

folder: {quoted(found.site + "-site")} # the site's working folder, beside this file

data:
  source: folder
  path: {_path_text(found.path, beside)} # {_scans_text(found)}{blood}

kit: null # the folder that the coordinating centre makes for this site with sahfl provision
"""


def consortium_text(name: str, host: str, sites: Sequence[str]) -> str:
    """A consortium file (YAML)."""
    return f"""\
# yaml-language-server: $schema={schema_of("consortium")}
# The hospitals that train together, and their server, written by sahfl init.
name: {quoted(name)} # in every certificate

server:
  host: {quoted(host)} # as the sites reach it
  port: 8443

sites: [{", ".join(map(quoted, sites))}] # their names in studies
"""


def _scans_text(found: SiteSurvey) -> str:
    return f"{found.format}, {found.n_scans} scans of {found.n_patients} patients"


def _labels_text(found: SiteSurvey) -> str:
    labels = (str(label) if isinstance(label, int) else quoted(label) for label in found.blood or ())
    return f"[{', '.join(labels)}]"


def _path_text(path: Path, beside: Path) -> str:
    """A path for a YAML file in the folder ``beside``, relative to it if it lies below."""
    absolute, folder = Path(os.path.realpath(path)), Path(os.path.realpath(beside))
    shown = absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute
    return quoted(str(shown))
