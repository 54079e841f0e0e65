"""Every error that sahfl raises on purpose.

The command line catches ``SahflError`` once and prints one clear line, without a traceback. The exit code is 2, or the
one of the class. Messages read *who or where: got X, expected Y* and give a remedy. They may name cases and files, so
they stay on the machine that raised them: a peer receives only the class name (``federation.site.app``).
"""

import errno
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType


class SahflError(Exception):
    """Base of all deliberate errors."""

    exit_code = 2
    settings: Mapping[tuple[str | int, ...], str] = MappingProxyType({})
    """The problem of each setting that the error is about, by its place in the file; empty if it is about none."""


class UnfitFile(SahflError, OSError):
    """A file is no regular one, or too large; an OSError too, so that callers treat it like an unreadable file."""

    def __init__(self, path: Path, reason: str) -> None:
        OSError.__init__(self, errno.EINVAL, reason, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class ConfigError(SahflError):
    """A YAML file has problems; the message lists all of them."""


class DataError(SahflError):
    """A scan, mask or datalist cannot be used."""


class ScanProblem(DataError):
    """A scan that breaks a rule; ``rule`` is the rule's name in the site's check report."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text)
        self.rule = rule


class DataRefused(DataError):
    """More of a site's cases break rules than the site's policy allows, or none is left."""


class DataChanged(DataError):
    """A site's data changed since the study began; the site stops."""


class DataShared(DataError):
    """Two sites hold the same scan, so that one could train on it while the other tests on it."""


class PolicyRefused(SahflError):
    """A site's policy does not allow a study's request."""


class BaseNotAccepted(PolicyRefused):
    """A request names a base network that nobody at the site has accepted yet."""


class StartNotConfirmed(PolicyRefused):
    """Too few other sites confirmed the start of a round, so that it could be one for this site alone."""


class StartTooFar(PolicyRefused):
    """The start of a round is farther from the one before than training can have moved it."""


class UpdateHeldBack(PolicyRefused):
    """A site held back the update of one round, because too few slices explain it; the training goes on without it."""


class RoundAlreadyAnswered(PolicyRefused):
    """A site has answered another request for this round of a training, and answers each round once."""


class MaskingRefused(PolicyRefused):
    """A site does not take a step of a masked round, because it could tell more than the sum of the sites."""


class RosterNotAccepted(PolicyRefused):
    """A site is asked about another one whose key is not in the roster that its people accepted."""


class PatientWithdrawn(PolicyRefused):
    """A study is closed at a site, because a patient who took part in it was withdrawn."""


class NoGain(PolicyRefused):
    """A site refuses to train a method that makes it lose against training alone, by its own measurement."""


class LosingSite(SahflError):
    """A finished study in which a site loses by taking part, although the study requires a gain (``require_gain``)."""

    exit_code = 3


class AdapterError(SahflError):
    """An adapter does not fit the network, the base or the study."""


class PrivatePartLost(SahflError):
    """What stays at a site of a training is missing there or damaged; the site does not go on without it."""


class PayloadError(SahflError):
    """A message from a peer does not fit the request; a site's reply is then left out of the round."""


class VersionsDiffer(SahflError):
    """A request, a run's folder or a site's folder is of another version of sahfl; the message has both versions."""


class TrustError(SahflError):
    """A key, certificate or signature is missing, wrong or expired; no message contains any part of a secret."""


class RunError(SahflError):
    """A run folder cannot be used: it belongs to another study, or holds no state to resume."""


class StorageError(SahflError):
    """A file cannot be written: the disk is full, read-only or failing."""

    exit_code = 3


class BudgetSpent(PolicyRefused):
    """A scan of a site was used as often as the site's policy allows, over all studies."""


class LedgerBroken(SahflError):
    """A site's ledger was changed, cut or put back to an earlier state; the site does no work without it."""

    exit_code = 3


class SiteStateLost(SahflError):
    """A file of a site's folder was lost, or put back to an earlier state; the site does no work without it."""

    exit_code = 3


class AuditBroken(SahflError):
    """A line of a site's audit log was changed, removed, added or moved, or the log is missing."""

    exit_code = 3


class ExportDiffers(SahflError):
    """An exported network does not compute the same as the run's network; the export is removed."""

    exit_code = 3


class PacsError(SahflError):
    """A hospital's archive does not answer, or answers what cannot be used; no text quotes an identifier."""

    exit_code = 3


class NotConnected(SahflError):
    """A site has no connection to its server; the message gives the reason in one line.

    ``lasting`` means that the cause will not go away by itself, so an immediate retry is useless.
    """

    exit_code = 3

    def __init__(self, text: str, *, lasting: bool = False) -> None:
        super().__init__(text)
        self.lasting = lasting


class RunFailed(SahflError):
    """A run ended without its result, for example below the quorum of sites."""

    exit_code = 3


class MaskingFailed(RunFailed):
    """A masked round ended without its sum: too few sites answered a step, or shares do not fit what they were of."""


class StudyCancelled(RunFailed):
    """Somebody took a study out of the server's queue while it ran; what it committed is kept."""
