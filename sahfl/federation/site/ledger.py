"""The ledger of a site: how often each scan was used, over all studies, and the budgets that stop further use.

A use is one round of training, or one evaluation, in which a scan takes part. Scans are named by the hash of their
content, so another name, another patient id or another study does not make a used scan new. A use is on the disk before
its work begins. Work that a crash ended counts once, and the same request counts once however often it is sent.

The ledger is a chained log like the audit log (``audit``). ``ledger.head`` holds the hash of its last line: a ledger
that was cut, changed or put back to an earlier state no longer ends with it. If both files were put back, the audit log
still has later hashes (``Ledger.check``). Each use has the head of the audit log, which is noticed if it was put back
(``folder_check``). A simulated site keeps no ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sahfl.atomic import write_atomic, writing
from sahfl.config import SiteConfig
from sahfl.errors import AuditBroken, BudgetSpent, LedgerBroken
from sahfl.federation.site.audit import FILE as AUDIT
from sahfl.federation.site.audit import LONGEST, RESTORE, START, AuditLog, lines_so_far, parse, verify
from sahfl.payload import Header
from sahfl.process import locked
from sahfl.regular_files import LINE_BYTES, LOG_BYTES, open_regular, read_text

FILE, HEAD = "ledger.jsonl", "ledger.head"
MOST_SCANS = 5000
"""Most scans of one line, which has a limit of its own (``audit.LONGEST``)."""
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


@dataclass(frozen=True)
class Use:
    """One use of scans."""

    kind: Kind
    study: str
    """Fingerprint of the study."""
    method: str
    fold: int
    """Held-out fold, counted from 0; -1 in pretraining."""
    round: int

    @property
    def training(self) -> str:
        """Name of the training in file names and commands."""
        stage = "pretrain" if self.fold < 0 else "finetune"
        return Header(self.study, stage, self.method, self.fold, self.round, base="").training


class Ledger:
    """The ledger in a site's folder."""

    def __init__(self, config: SiteConfig) -> None:
        self._config, self._folder = config, config.folder
        self._log = AuditLog(config.folder, FILE)

    def reserve(self, kind: Kind, header: Header, asked: str, scans: Iterable[str]) -> None:
        """Note a use of scans before the work begins; the same request on the same scans is not counted again.

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
            book = self._read()
            chosen = sorted(set(scans))
            name = hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:16]
            if (kind, asked, name) in book.asked:
                return
            self._require_budget(kind, book.usage, chosen)
            new = sorted(set(chosen) - set(book.sets.get(name, ())))
            for first in range(0, len(new), MOST_SCANS):
                part = new[first : first + MOST_SCANS]
                self._append("scans", f"{len(part)} scans of a set of {len(chosen)}.", set=name, scans=part)
            place = {"study": header.study[:64], "method": header.method, "fold": header.fold, "round": header.round}
            what = f"{'Round' if kind == 'round' else 'Evaluation'} of {header.method}, fold {header.fold}"
            audited = AuditLog(self._folder).head()
            self._append(kind, f"{what}: uses {len(chosen)} scans.", asked=asked, set=name, audit=audited, **place)

    def usage(self) -> dict[str, Usage]:
        """How often each scan was used, by the hash of its content.

        Raises:
            LedgerBroken: the ledger was changed, or put back to an earlier state.
        """
        return {scan: replace(one, studies=set(one.studies)) for scan, one in self._read().usage.items()}

    def uses_of(self, scans: Collection[str]) -> Iterator[Use]:
        """Every use in which one of some scans took part, the oldest first.

        Raises:
            LedgerBroken: as ``check``.
        """
        wanted, sets = set(scans), set[str]()
        self.check()
        for line in lines_so_far(self._folder / FILE):
            details = line["details"]
            if line["event"] == "scans" and not wanted.isdisjoint(details["scans"]):
                sets.add(details["set"])
            elif line["event"] in ("round", "evaluation") and details["set"] in sets:
                place = {name: details[name] for name in ("study", "method", "fold", "round")}
                yield Use(line["event"], **place)

    def left(self) -> dict[str, int]:
        """What is left of each budget to the scan that was used most."""
        budget, used = self._config.policy.budget, self._read().usage.values()
        return {
            "rounds": budget.rounds - max((scan.rounds for scan in used), default=0),
            "evaluations": budget.evaluations - max((scan.evaluations for scan in used), default=0),
        }

    def head(self) -> str:
        """The hash of the last line. The audit log has it with every answer."""
        return self._log.head()

    def check(self) -> int:
        """Verify every line of the ledger, and that it has what the audit log saw of it; returns the number of lines.

        Raises:
            LedgerBroken: names the first line that was changed or is missing.
        """
        book = self._read()
        try:
            n = verify(self._folder / FILE).n if book.hashes else 0
            audited = list(lines_so_far(self._folder / AUDIT))
        except AuditBroken as error:
            raise LedgerBroken(str(error)) from error
        known = {START, *book.hashes}
        for line in audited:
            if str(line["details"].get("ledger", START)) not in known:
                text = f"{self._folder / FILE}: lacks a line that it had at line {line['n']} of the audit log"
                raise LedgerBroken(f"{text}, so it was cut or put back; {RESTORE}")
        return n

    def _require_budget(self, kind: Kind, used: Mapping[str, Usage], scans: Sequence[str]) -> None:
        name = f"{kind}s"
        most = getattr(self._config.policy.budget, name)
        spent = [scan for scan in scans if scan in used and used[scan].count(kind) >= most]
        if spent:
            found = f"policy.budget.{name}: {len(spent)} of {len(scans)} scans were used {most} times, over all studies"
            raise BudgetSpent(f"site {self._config.name}: {found}; sahfl ledger shows them, and only you can raise it")

    def _append(self, event: str, words: str, **details: object) -> None:
        head = self._log.append(event, words, **details)
        with writing(self._folder / HEAD):
            write_atomic(self._folder / HEAD, head + "\n")

    def _read(self) -> _Book:
        """All that the ledger has; lines may be newer than ``ledger.head``, after a crash or a full disk."""
        book = _read_book(self._folder / FILE)
        head = _head(self._folder / HEAD)
        if head not in book.hashes and not (head == START and len(book.hashes) <= 2):
            text = f"{self._folder / FILE}: lacks the line that {HEAD} names, so it was cut, changed or put back"
            raise LedgerBroken(f"{text}; {RESTORE}")
        return book


def audit_heads(folder: Path) -> Iterator[str]:
    """The head that the audit log had at each use in the ledger of a site's folder, the oldest first."""
    for line in lines_so_far(folder / FILE):
        if "audit" in line["details"]:
            yield str(line["details"]["audit"])


@dataclass
class _Book:
    """The content of a ledger, up to a place in its file."""

    size: int = 0
    """Bytes of the lines that are counted."""
    last: bytes = b""
    """The last of these lines."""
    hashes: list[str] = field(default_factory=list)
    sets: dict[str, list[str]] = field(default_factory=dict)
    """Scans of each set, by its name."""
    asked: set[tuple[str, str, str]] = field(default_factory=set)
    """Kind, request and set of each use."""
    usage: dict[str, Usage] = field(default_factory=dict)

    def add(self, text: bytes) -> None:
        """Count one line; a line that a crash cut off counts as none.

        Raises:
            KeyError, TypeError: it is a whole line, but not a ledger's.
        """
        self.size, self.last = self.size + len(text), text
        if (line := parse(text)) is None:
            return
        self.hashes.append(line["hash"])
        event, details = line["event"], line["details"]
        if event == "scans":
            self.sets.setdefault(details["set"], []).extend(details["scans"])
        elif event in ("round", "evaluation"):
            self.asked.add((event, details["asked"], details["set"]))
            for scan in self.sets.get(details["set"], ()):
                usage = self.usage.setdefault(scan, Usage())
                usage.rounds += event == "round"
                usage.evaluations += event == "evaluation"
                usage.studies.add(details["study"])


_books: dict[Path, _Book] = {}
"""Ledgers that this process has read; only what was written since is read again."""


def _read_book(path: Path) -> _Book:
    try:
        with open_regular(path, most=LOG_BYTES) as stream:
            book = _books.pop(path, _Book())
            stream.seek(max(0, book.size - len(book.last)))
            if stream.read(len(book.last)) != book.last:
                book = _Book()
                stream.seek(0)
            for text in iter(lambda: stream.readline(LONGEST), b""):
                book.add(text)
    except FileNotFoundError:
        return _Book()
    except OSError as error:
        raise LedgerBroken(f"{path}: cannot be read ({error.strerror}); restore it") from error
    except (KeyError, TypeError) as error:
        raise LedgerBroken(f"{path}: was changed; it has a line that is not a ledger's. Restore it") from error
    if book.last.endswith(b"\n"):  # the next line may complete one that a crash cut off
        _books[path] = book
    return book


def _head(path: Path) -> str:
    try:
        return read_text(path, most=LINE_BYTES).strip()
    except FileNotFoundError:
        return START
    except (OSError, ValueError) as error:
        raise LedgerBroken(f"{path}: cannot be read; restore it") from error
