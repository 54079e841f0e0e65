"""Checks a site's data for ``sahfl check``, and writes ``checks.json`` and ``checks.html``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from sahfl import __version__
from sahfl.atomic import make_folder, write_atomic
from sahfl.config import SiteConfig
from sahfl.data.checks import CheckedCase, count_findings, usable_cases
from sahfl.data.ct import Scan
from sahfl.data.manifest import PATIENTS_FROM
from sahfl.data.measures import Measures
from sahfl.data.repeat_scans import warn_of_repeat_scans
from sahfl.data.rules import BY_ID
from sahfl.errors import ConfigError, DataRefused
from sahfl.federation.site.site import Site
from sahfl.process import now_text
from sahfl.report.checks_page import write_checks_page
from sahfl.report.scan_pictures import ScanPicture, draw_scan

MOST_PICTURES = 400
"""Number of cases with a picture (about 40 kB) on the page; further cases get one only if they have a finding."""
SCHEMA = 1


@dataclass(frozen=True)
class SiteVerdict:
    """The result of the check."""

    checks: dict[str, Any]
    """The content of ``checks.json``."""
    page: Path
    """Path of ``checks.html``."""
    warnings: tuple[str, ...]
    """Of likely repeat scans of a patient, and of too few patients to train on."""

    @property
    def may_train(self) -> bool:
        """Whether at least one case is usable and the share of refused cases is within the site's policy."""
        return bool(self.checks["may_train"])


def check_site(config: SiteConfig, *, on_case: Callable[[int, int], None] = lambda done, total: None) -> SiteVerdict:
    """Check every case of a site and write the result, with one scan in memory at a time.

    Raises:
        ConfigError: the site's folder cannot be made or written; raised before any scan is read.
        DataError: the datalist is wrong; broken cases are findings, not errors.
    """
    _make_folder(config)
    facts: dict[str, dict[str, Any]] = {}
    pictures: dict[str, ScanPicture] = {}

    def look(item: CheckedCase, scan: Scan | None, measures: Measures | None) -> None:
        if scan is None or measures is None:
            return
        facts[item.case.id] = {
            "measures": asdict(measures),
            "shape": list(scan.image.shape),
            "spacing_mm": [round(size, 4) for size in scan.spacing_mm],
        }
        if len(pictures) < MOST_PICTURES or item.findings:
            x, y, _ = scan.spacing_mm
            pictures[item.case.id] = draw_scan(scan.image, scan.label, y / x)

    checked = Site(config).check(on_case, look)
    checks = _as_json(config, checked, facts)
    write_atomic(config.folder / "checks.json", json.dumps(checks, indent=1, allow_nan=False) + "\n")
    found = warn_of_repeat_scans(item.case for item in checked), checks["too_few_patients"]
    return SiteVerdict(checks, write_checks_page(checks, pictures, config.folder), tuple(filter(None, found)))


def _too_few_patients(config: SiteConfig, checked: Sequence[CheckedCase]) -> str:
    """A text if the site's own policy, or any study, asks for more patients than it has; empty if not."""
    usable = [item for item in checked if item.usable]
    n, least = len({item.case.patient for item in usable}), config.policy.adapters.least_patients
    if not usable or n >= max(2, least):
        return ""
    found = f"the {len(usable)} usable case(s) are scans of {n} patient(s)"
    if n < 2:
        found += "; a study needs 2, one to train on and one to test on"
    if n < least:
        found += f"; the site trains on {least} or more (policy.adapters.least_patients)"
    return f"{found}. Add patients, or correct {PATIENTS_FROM} where that is wrong"


def _make_folder(config: SiteConfig) -> None:
    try:
        make_folder(config.folder)
        with TemporaryFile(dir=config.folder):
            pass
    except OSError as error:
        text = f"site {config.name}: folder {config.folder} cannot be written ({error.strerror})"
        raise ConfigError(f"{text}; name another one under 'folder' in the site file") from error


def _as_json(config: SiteConfig, checked: Sequence[CheckedCase], facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    n_usable = sum(item.usable for item in checked)
    unknown = {"measures": None, "shape": None, "spacing_mm": None}
    return {
        "schema": SCHEMA,
        "sahfl": __version__,
        "site": config.name,
        "checked": now_text(),
        "may_train": _may_train(config, checked),
        "too_few_patients": _too_few_patients(config, checked),
        "max_refused_share": config.max_refused_share,
        "n_cases": len(checked),
        "n_usable": n_usable,
        "n_refused": len(checked) - n_usable,
        "n_patients": len({item.case.patient for item in checked}),
        "rules": [{"rule": name, "n": n, **_rule(name)} for name, n in count_findings(checked).items()],
        "cases": [
            {
                "case": item.case.id,
                "usable": item.usable,
                "volume_ml": round(item.volume_ml, 3),
                "findings": [asdict(found) for found in item.findings],
                **facts.get(item.case.id, unknown),
            }
            for item in checked
        ],
    }


def _rule(name: str) -> dict[str, str]:
    rule = BY_ID[name]
    return {"severity": rule.severity, "meaning": rule.meaning, "remedy": rule.remedy}


def _may_train(config: SiteConfig, checked: Sequence[CheckedCase]) -> bool:
    try:
        usable_cases(checked, max_refused_share=config.max_refused_share)
    except DataRefused:
        return False
    return True
