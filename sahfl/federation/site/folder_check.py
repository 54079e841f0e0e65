"""Whether a site's folder is whole: a file of it that was lost or put back lacks what the audit log has seen.

The audit log has a line for every answer, so it is the witness of the other files, and the ledger is the witness of the
audit log. A folder that was put back as a whole, from one backup, passes: nothing in it can show what is missing.

Once per process, because a person who puts files back stops the site first.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from packaging.version import InvalidVersion, Version

from sahfl import __version__
from sahfl.config import SiteConfig
from sahfl.errors import SiteStateLost, VersionsDiffer
from sahfl.federation import masked_messages, protocol
from sahfl.federation.site import (
    answered,
    audit,
    known_policy,
    known_roster,
    known_studies,
    ledger,
    masked_once,
    secret,
    withdrawn,
)
from sahfl.federation.site.round_list import RoundList

LISTED: dict[str, tuple[str, ...]] = {
    protocol.TRAIN: (answered.FOLDER, answered.TRAININGS),
    protocol.LOCAL_PHASE: (answered.FOLDER,),
    protocol.CONFIRM_START: (answered.CONFIRMED,),
}
"""By the kind of message, the lists that have a line of each round of which the audit log has an answer."""
Round = tuple[str, str, int]
"""Fingerprint of a study, name of a training, round."""
_whole: set[Path] = set()
"""Folders that this process has found whole."""


def require_whole(config: SiteConfig) -> None:
    """Check a site's folder, unless this process did so before; a simulated site's is not checked.

    Raises:
        SiteStateLost, VersionsDiffer, LedgerBroken, AuditBroken: as ``check_folder``.
    """
    if not config.simulated and config.folder not in _whole:
        check_folder(config)
        _whole.add(config.folder)


def check_folder(config: SiteConfig) -> int:
    """Compare the files of a site's folder with the audit log, and the audit log with the ledger.

    Returns the number of answers of which the audit log has a line.

    Raises:
        VersionsDiffer: a newer version of sahfl worked in this folder.
        SiteStateLost: names the first file that lacks something, with the line of the audit log that has it.
        LedgerBroken: the ledger was changed or cut, or lacks what the audit log saw.
        AuditBroken: the audit log cannot be read.
    """
    seen = _Seen.of(config.folder / audit.FILE)
    _require_no_newer(seen.version, config.folder)
    _require_audit_log(config.folder, seen)
    ledger.Ledger(config).check()
    if seen.secrets and seen.secrets != {secret.commitment(config)}:
        text = "is another secret than the one from which the answers in the audit log drew their batches"
        raise SiteStateLost(f"{config.folder / secret.FILE}: {text}; {secret.REMEDY}")
    _require_studies(config.folder, seen)
    _require_rounds(config.folder, seen)
    _require_masked(config.folder, seen)
    _require_withdrawals(config.folder, seen)
    _require_roster(config.folder, seen)
    return seen.n_answers


@dataclass
class _Seen:
    """What the lines of an audit log have seen of a site's other files."""

    hashes: set[str] = field(default_factory=lambda: {audit.START})
    version: str = ""
    """Version of sahfl that wrote the last answer."""
    secrets: set[str] = field(default_factory=set)
    """Hashes of the secret, since it was renewed last."""
    studies: dict[str, int] = field(default_factory=dict)
    """Studies that got an answer, with the first such line."""
    evaluated: dict[str, int] = field(default_factory=dict)
    """The same for studies that got sums of an evaluation."""
    rounds: dict[str, dict[Round, int]] = field(default_factory=lambda: defaultdict(dict))
    """By the list that must have them, the rounds that got an answer and were not released, each with its line."""
    masked: dict[str, dict[Round, int]] = field(default_factory=lambda: defaultdict(dict))
    """By the list of what was masked once, the rounds that must be in it, each with its line."""
    withdrawals: dict[str, int] = field(default_factory=dict)
    """Names of the withdrawals, each with its line."""
    roster: tuple[str, int] | None = None
    """Hash of the roster that was accepted last, with its line."""
    policy: bool = False
    """Whether a policy was noted, which comes before everything else."""
    n_answers: int = 0

    @classmethod
    def of(cls, path: Path) -> _Seen:
        """Read an audit log; a site that was asked nothing yet has none."""
        seen = cls()
        for line in audit.lines_so_far(path):
            seen.add(line)
        return seen

    def add(self, line: audit.Line) -> None:
        """Note one line."""
        self.hashes.add(line["hash"])
        details = line["details"]
        self.policy = self.policy or line["event"] == "policy"
        if line["event"] == "secret_renewed":
            self.secrets = {details["batches"]}
        elif line["event"] == "roster_accepted":
            self.roster = details["roster"], line["n"]
        elif line["event"] == "sums_released":
            self.masked.pop(masked_once.SUMMED, None)
        elif line["event"] == "withdrawn":
            self.withdrawals[details["withdrawal"]] = line["n"]
        elif line["event"] == "round_released":
            for rounds in self.rounds.values():
                for one in [one for one in rounds if one[1] == details["training"] and one[2] >= details["round"]]:
                    del rounds[one]
        elif line["event"] == "answered" and "training" in details:
            self._add_answer(line["n"], details)

    def _add_answer(self, n: int, details: audit.Line) -> None:
        self.n_answers, self.version = self.n_answers + 1, details["sahfl"]
        self.secrets.add(details["batches"])
        self.studies.setdefault(details["study"], n)
        if details["asked"] in protocol.EVALUATIONS:
            self.evaluated.setdefault(details["study"], n)
        self._add_masked(n, details)
        for name in LISTED.get(details["asked"], ()):
            round_ = 1 if name == answered.TRAININGS else details["round"]  # settings are released with round 1
            self.rounds[name].setdefault((details["study"], details["training"], round_), n)

    def _add_masked(self, n: int, details: audit.Line) -> None:
        confirmed = details["asked"] == masked_messages.SURVIVORS and details.get("sum", "training") != "training"
        if name := masked_once.DRAWN if "masked" in details else masked_once.SUMMED if confirmed else "":
            self.masked[name].setdefault((details["study"], details["training"], details["round"]), n)


def _require_no_newer(version: str, folder: Path) -> None:
    try:
        newer = bool(version) and Version(version) > Version(__version__)
    except InvalidVersion:
        newer = True
    if newer:
        found = f"{folder}: sahfl {version[:40]!r} worked here last, this is sahfl {__version__!r}"
        raise VersionsDiffer(f"{found}, which may not understand its files; install that version or a newer one")


def _require_audit_log(folder: Path, seen: _Seen) -> None:
    path = folder / audit.FILE
    if lost := [head for head in ledger.audit_heads(folder) if head not in seen.hashes]:
        text = f"lacks the line {lost[0][:16]}... that it had when the ledger noted a use,"
        raise SiteStateLost(f"{path}: {text} so it was cut, lost or put back; {audit.RESTORE}")
    if not seen.policy and (folder / known_policy.FILE).exists():
        raise SiteStateLost(f"{path}: lacks its first lines, though this site was asked before; {audit.RESTORE}")


def _require_studies(folder: Path, seen: _Seen) -> None:
    path, known = folder / known_studies.FILE, known_studies.read_studies(folder)
    for study, n in seen.studies.items():
        if study not in known:
            raise _lost(path, f"study {study[:12]}", n)
    for study, n in seen.evaluated.items():
        if known[study].evaluation is None:
            raise _lost(path, f"the settings of the evaluation of study {study[:12]}", n)


def _require_rounds(folder: Path, seen: _Seen) -> None:
    for name, rounds in seen.rounds.items():
        studies = {study for study, _, _ in rounds}
        lists = {study: RoundList.of_study(folder / name, study) for study in studies}
        listed = {study: {(line.training, line.round) for line in one.lines()} for study, one in lists.items()}
        for (study, training, round_), n in rounds.items():
            place = 0 if name == answered.TRAININGS else round_
            if (training, place) not in listed[study]:
                raise _lost(lists[study].path, f"round {round_} of training {training}", n)


def _require_masked(folder: Path, seen: _Seen) -> None:
    for name, rounds in seen.masked.items():
        path = folder / answered.MASKED / name
        listed = {(line.training, line.round) for line in RoundList(path).lines()}
        for (_, training, round_), n in rounds.items():
            if (training, round_) not in listed:
                raise _lost(path, f"a masked sum of training {training}", n)


def _require_withdrawals(folder: Path, seen: _Seen) -> None:
    known = {one.id for one in withdrawn.read_withdrawn(folder)}
    if lost := [n for name, n in seen.withdrawals.items() if name not in known]:
        text = f"lacks the patient who was withdrawn at line {lost[0]} of the audit log"
        raise SiteStateLost(f"{folder / withdrawn.FILE}: {text}; {audit.RESTORE}")


def _require_roster(folder: Path, seen: _Seen) -> None:
    found = known_roster.accepted_roster(folder)
    if seen.roster is not None and (found is None or found.sha256 != seen.roster[0]):
        text = f"is not the roster {seen.roster[0][:16]}... that was accepted at line {seen.roster[1]} of the audit log"
        remedy = "restore it, or accept a roster again: sahfl-client accept-roster SITE_FILE"
        raise SiteStateLost(f"{folder / known_roster.FILE}: {text}; {remedy}")


def _lost(path: Path, what: str, n: int) -> SiteStateLost:
    return SiteStateLost(f"{path}: lacks {what}, which got an answer at line {n} of the audit log; {audit.RESTORE}")
