"""What a site masks once, and over which sites: two lists in the folder ``masked``, across all studies.

``drawn.jsonl`` has the batches of every vector that was masked. One vector in two sums would be the difference of two
sums; so a study that asks for the same batches again, under another name, gets no vector.

An evaluation can be asked for again with a network that is almost the same. So ``summed.jsonl`` has the sites of the
first sum that a held-out scan was in, and each later one must be over the same sites, whichever other scans are in it:
the folds of two studies with other seeds add up to the same scans. A person at the site can release the scans.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from hashlib import sha256

from sahfl.atomic import write_atomic, writing
from sahfl.config import SiteConfig
from sahfl.errors import MaskingRefused
from sahfl.federation.site.answered import MASKED
from sahfl.federation.site.audit import AuditLog
from sahfl.federation.site.round_list import Line, RoundList
from sahfl.masking.context import Context
from sahfl.payload import Header
from sahfl.process import locked

DRAWN, SUMMED = "drawn.jsonl", "summed.jsonl"
HOW_TO_RELEASE = (
    "Evaluate at the same sites; or, if all hospitals agree to show that difference: sahfl-client forget-sums SITE_FILE"
)
SHOWN = 16
"""Digits of a scan's hash in the list."""


def note_drawn(config: SiteConfig, sum_: Context, header: Header, key: str, *, mask_key: bytes, what: str) -> None:
    """Note the batches of a vector, or the evaluation that it is of; a simulated site notes nothing.

    Args:
        config: of the site.
        sum_: the masked sum.
        header: names the training and the round.
        key: names the batches (``secret.batch_key``).
        mask_key: this site's public key, with which the vector is masked.
        what: the batches, or the evaluation, in words.

    Raises:
        MaskingRefused: a vector of the same batches or evaluation was masked in another round or study.
        StorageError: the list cannot be read or written.
    """
    if config.simulated:
        return
    line = replace(Line.of(header, key), method=sha256(mask_key).hexdigest()[:16])
    drawn = RoundList(config.folder / MASKED / DRAWN)
    if any(one.asked == key and one != line for one in drawn.lines()):
        text = f"the same {what} masked before, with other keys; two sums would show one site's part"
        raise MaskingRefused(f"{sum_}: {text}. A study with another seed draws other batches")
    drawn.add(line)


def require_same_sites(config: SiteConfig, sum_: Context, *, sites: Collection[str], scans: Collection[str]) -> None:
    """Refuse a sum over some sites if an earlier one, over others, has one of this site's held-out scans.

    Args:
        config: of the site; a simulated one refuses nothing.
        sum_: the masked sum.
        sites: whose results are in the sum.
        scans: hash of the voxels of each scan of this site that is in it. Without any, nothing is refused.

    Raises:
        MaskingRefused: names the sites that are in one of the two sums alone.
        StorageError: the list cannot be read.
    """
    if config.simulated:
        return
    mine = {scan[:SHOWN] for scan in scans}
    for line in _summed(config).lines():
        both = mine.intersection(line.method.split())
        if both and (other := sorted(set(line.asked.split()).symmetric_difference(sites))):
            found = f"{len(both)} of the held-out scans are in an earlier sum, and {', '.join(other)} in one of the two"
            why = "the difference of such sums could be one site's results"
            raise MaskingRefused(f"{sum_}: {found}; {why}. {HOW_TO_RELEASE}")


def note_summed(
    config: SiteConfig, sum_: Context, header: Header, *, sites: Collection[str], scans: Collection[str]
) -> None:
    """Note the sites of a sum over held-out scans; a simulated site notes nothing.

    Args:
        config: as in ``require_same_sites``, and so are ``sum_``, ``sites`` and ``scans``.
        sum_: the masked sum.
        header: names the training.
        sites: whose results are in the sum.
        scans: those of this site.

    Raises:
        MaskingRefused: as ``require_same_sites``.
        StorageError: the list cannot be read or written.
    """
    if config.simulated:
        return
    require_same_sites(config, sum_, sites=sites, scans=scans)
    summed = _summed(config)
    known = {scan for line in summed.lines() for scan in line.method.split()}
    new = sorted({scan[:SHOWN] for scan in scans} - known)
    named = " ".join(sorted(sites)) if new else ""  # the lines of the other scans have the same sites
    summed.add(replace(Line.of(header, named), method=" ".join(new)))


def forget_summed(config: SiteConfig) -> int:
    """Release all held-out scans for sums over other sites; the audit log has a line for it before it counts.

    Returns the number of scans.

    Raises:
        StorageError: the audit log or the list cannot be read or written.
    """
    summed = _summed(config)
    n = len({scan for line in summed.lines() for scan in line.method.split()})
    if n:
        words = f"Released: {n} held-out scans, which may be in masked sums over other sites than before."
        AuditLog(config.folder).append("sums_released", words, scans=n)
        with writing(summed.path), locked(summed.path.with_suffix(".lock")):
            write_atomic(summed.path, "")
    return n


def _summed(config: SiteConfig) -> RoundList:
    return RoundList(config.folder / MASKED / SUMMED)
