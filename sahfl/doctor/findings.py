"""The result of one check, and its presentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from sahfl.problems import where_text
from sahfl.section import Place
from sahfl.settings_file import read_settings

Verdict = Literal["ok", "warn", "FAIL", "skip"]
SCHEMA = 1


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. Made by ``ok``, ``warn`` and ``fail``, so that only a problem has a remedy."""

    check: str
    """Name of the check."""
    verdict: Verdict
    found: str
    remedy: str | None = None
    """The one thing to do; None if nothing is to be done."""

    @classmethod
    def ok(cls, check: str, found: str) -> Self:
        """Make a finding for a passed check."""
        return cls(check, "ok", found)

    @classmethod
    def warn(cls, check: str, found: str, *, remedy: str) -> Self:
        """Make a finding for something that works today, but may fail later or is uncertain."""
        return cls(check, "warn", found, remedy)

    @classmethod
    def fail(cls, check: str, found: str, *, remedy: str) -> Self:
        """Make a finding for a failed check."""
        return cls(check, "FAIL", found, remedy)

    @classmethod
    def of_error(cls, check: str, error: Exception, *, remedy: str) -> Self:
        """Make a failure from an error; a remedy in its text, after a semicolon, replaces ``remedy``."""
        return cls(check, "FAIL", *_split(str(error), remedy))

    @classmethod
    def of_warning(cls, check: str, text: str) -> Self:
        """Make a warning from a text that contains a remedy after a semicolon."""
        return cls(check, "warn", *_split(text, "ask the coordinating centre"))


def _split(text: str, remedy: str) -> tuple[str, str]:
    found, _, advice = " ".join(text.split()).rpartition("; ")
    return (found, advice) if found else (advice, remedy)


def skip_all(checks: Iterable[str], *, needs: str) -> list[Finding]:
    """The checks that a failed one makes impossible, as skipped."""
    return [Finding(check, "skip", f"not looked at: needs {needs}") for check in checks]


def naming_settings(findings: Iterable[Finding], file: Path, settings: Mapping[str, Place]) -> list[Finding]:
    """Findings whose failures begin with the file, the line and the name of the setting that they are about.

    ``settings`` has the place of the setting for the names of some checks.
    """
    lines = read_settings(file).lines
    return [
        replace(one, found=f"{file}, {where_text(settings[one.check], lines)}: {one.found}")
        if one.verdict == "FAIL" and one.check in settings
        else one
        for one in findings
    ]


def healthy(findings: Iterable[Finding]) -> bool:
    """Test whether no check failed."""
    return all(finding.verdict != "FAIL" for finding in findings)


def as_lines(findings: Sequence[Finding]) -> list[str]:
    """One line for each finding: verdict, check, what was found, and the remedy after an arrow."""
    width = max((len(finding.check) for finding in findings), default=0)
    return [
        f"{finding.verdict:<4}  {finding.check:<{width}}  {finding.found}"
        + (f" -> {finding.remedy}" if finding.remedy else "")
        for finding in findings
    ]


def as_json(findings: Sequence[Finding], *, file: str, kind: Literal["site", "server"]) -> dict[str, Any]:
    """The findings for a monitoring program."""
    return {
        "schema": SCHEMA,
        "file": file,
        "kind": kind,
        "healthy": healthy(findings),
        "findings": [asdict(finding) for finding in findings],
    }
