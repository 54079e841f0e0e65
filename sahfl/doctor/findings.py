"""What one check found, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

Verdict = Literal["ok", "warn", "FAIL", "skip"]
SCHEMA = 1


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. Made by ``ok``, ``warn``, ``fail`` and ``skip``, so that only a problem has a remedy."""

    check: str
    """Name of what was looked at."""
    verdict: Verdict
    found: str
    remedy: str | None = None
    """The one thing to do; None where nothing is to be done."""

    @classmethod
    def ok(cls, check: str, found: str) -> Self:
        """All is well."""
        return cls(check, "ok", found)

    @classmethod
    def warn(cls, check: str, found: str, *, remedy: str) -> Self:
        """It works today; it may not tomorrow, or nobody can tell."""
        return cls(check, "warn", found, remedy)

    @classmethod
    def fail(cls, check: str, found: str, *, remedy: str) -> Self:
        """It does not work."""
        return cls(check, "FAIL", found, remedy)

    @classmethod
    def of_error(cls, check: str, error: Exception, *, remedy: str) -> Self:
        """A failure from an error, whose text may say behind a semicolon what to do; otherwise ``remedy`` does."""
        return cls(check, "FAIL", *_split(str(error), remedy))

    @classmethod
    def of_warning(cls, check: str, text: str) -> Self:
        """A warning whose text says behind a semicolon what to do."""
        return cls(check, "warn", *_split(text, "ask the coordinating centre"))

    @classmethod
    def skip(cls, check: str, *, needs: str) -> Self:
        """It could not be looked at, because an earlier check failed."""
        return cls(check, "skip", f"not looked at: needs {needs}")


def _split(text: str, remedy: str) -> tuple[str, str]:
    found, _, said = " ".join(text.split()).rpartition("; ")
    return (found, said) if found else (said, remedy)


def skip_all(checks: Iterable[str], *, needs: str) -> list[Finding]:
    """The checks that a failed one makes impossible."""
    return [Finding.skip(check, needs=needs) for check in checks]


def healthy(findings: Iterable[Finding]) -> bool:
    """Nothing failed."""
    return all(finding.verdict != "FAIL" for finding in findings)


def as_lines(findings: Sequence[Finding]) -> list[str]:
    """One line for each finding: verdict, check, what was found, and the remedy behind an arrow."""
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
