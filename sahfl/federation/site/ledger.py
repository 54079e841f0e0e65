"""The ledger of a site: how often each scan was used, over all studies, and the budgets that stop further use.

A use is one round of training, or one evaluation, in which a scan takes part. Scans are named by the hash of their
content, so another name, another patient id or another study does not make a used scan new. A use is on the disk before
its work begins. Work that a crash ended counts once, and the same request counts once however often it is sent.

The ledger is a chained log like the audit log (``audit``). ``ledger.head`` holds the hash of its last line: a ledger
that was cut, changed or put back to an earlier state no longer ends with it. A simulated site keeps no ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sahfl.atomic import OWNER_ONLY, write_atomic
from sahfl.config import SiteConfig
from sahfl.errors import AuditBroken, BudgetSpent, LedgerBroken, StorageError
from sahfl.federation.site.audit import START, AuditLog, Line, read_lines, verify
from sahfl.payload import Header
from sahfl.process import locked

FILE, HEAD = "ledger.jsonl", "ledger.head"
Kind = Literal["round", "evaluation"]


@dataclass
class Usage:
    """How often one scan was used."""

    rounds: int = 0
    evaluations: int = 0
    studies: set[str] = field(default_factory=set)
    """Fingerprints of the studies that used it."""

    def count(self, kind: Kind) -> int:
        """The number of uses of a kind."""
        return self.rounds if kind == "round" else self.evaluations


class Ledger:
    """The ledger in a site's folder."""

    def __init__(self, config: SiteConfig) -> None:
        self._config, self._folder = config, config.folder
        self._log = AuditLog(config.folder, FILE)

    def reserve(self, kind: Kind, header: Header, asked: str, scans: Iterable[str]) -> None:
        """Note a use of scans before the work begins; a request that was noted before is not counted again.

        Args:
            kind: what the scans are used for.
            header: names study, method, fold and round.
            asked: hash of the request.
            scans: hashes of the contents of the scans that take part.

        Raises:
            BudgetSpent: a scan has no use of this kind left; nothing is noted.
            LedgerBroken: the ledger was changed, or put back to an earlier state.
            StorageError: the line cannot be written.
        """
        if self._config.simulated:
            return
        with locked(self._folder / "ledger.lock"):
            lines = self._lines()
            if any(line["event"] == kind and line["details"]["asked"] == asked for line in lines):
                return
            chosen = sorted(set(scans))
            self._require_budget(kind, lines, chosen)
            name = hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:16]
            if not any(line["event"] == "scans" and line["details"]["set"] == name for line in lines):
                self._append("scans", f"A set of {len(chosen)} scans.", set=name, scans=chosen)
            place = {"study": header.study[:64], "method": header.method, "fold": header.fold, "round": header.round}
            what = f"{'Round' if kind == 'round' else 'Evaluation'} of {header.method}, fold {header.fold + 1}"
            self._append(kind, f"{what}: uses {len(chosen)} scans.", asked=asked, set=name, **place)

    def usage(self) -> dict[str, Usage]:
        """How often each scan was used, by the hash of its content.

        Raises:
            LedgerBroken: the ledger was changed, or put back to an earlier state.
        """
        return _usage(self._lines())

    def left(self) -> dict[str, int]:
        """What is left of each budget to the scan that was used most."""
        budget, used = self._config.policy.budget, self.usage().values()
        return {
            "rounds": budget.rounds - max((scan.rounds for scan in used), default=0),
            "evaluations": budget.evaluations - max((scan.evaluations for scan in used), default=0),
        }

    def check(self) -> int:
        """Verify every line of the ledger; returns the number of lines.

        Raises:
            LedgerBroken: names the first line that was changed or is missing.
        """
        self._lines()
        try:
            return verify(self._folder / FILE).n if (self._folder / FILE).exists() else 0
        except AuditBroken as error:
            raise LedgerBroken(str(error)) from error

    def _require_budget(self, kind: Kind, lines: Sequence[Line], scans: Sequence[str]) -> None:
        name = f"{kind}s"
        most, used = getattr(self._config.policy.budget, name), _usage(lines)
        spent = [scan for scan in scans if scan in used and used[scan].count(kind) >= most]
        if spent:
            found = f"policy.budget.{name}: {len(spent)} of {len(scans)} scans were used {most} times, over all studies"
            raise BudgetSpent(f"site {self._config.name}: {found}; sahfl ledger shows them, and only you can raise it")

    def _append(self, event: str, words: str, **details: object) -> None:
        head = self._log.append(event, words, **details)
        try:
            write_atomic(self._folder / HEAD, head + "\n", mode=OWNER_ONLY)
        except OSError as error:
            raise StorageError(f"{self._folder / HEAD}: cannot be written ({error.strerror}); make room") from error

    def _lines(self) -> list[Line]:
        """All lines; the last one may be newer than ``ledger.head``, after a crash between the two files."""
        path = self._folder / FILE
        lines = list(read_lines(path)) if path.exists() else []
        known = _head(self._folder / HEAD)
        if known not in [line["hash"] for line in lines[-2:]] + ([START] if len(lines) <= 1 else []):
            text = f"{path}: does not end with the line that {HEAD} names; it was cut, changed or put back"
            raise LedgerBroken(f"{text}. Restore it; without it nobody knows how often each scan was used")
        return lines


def _head(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return START
    except (OSError, ValueError) as error:
        raise LedgerBroken(f"{path}: cannot be read; restore it") from error


def _usage(lines: Iterable[Line]) -> dict[str, Usage]:
    sets: dict[str, list[str]] = {}
    found: dict[str, Usage] = {}
    for line in lines:
        event, details = line["event"], line["details"]
        if event == "scans":
            sets[details["set"]] = details["scans"]
        elif event in ("round", "evaluation"):
            for scan in sets.get(details["set"], ()):
                usage = found.setdefault(scan, Usage())
                usage.rounds += event == "round"
                usage.evaluations += event == "evaluation"
                usage.studies.add(details["study"])
    return found
