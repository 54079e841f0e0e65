"""What a site masks once, and over which sites: two lists in the folder ``masked``, across all studies.

``drawn.jsonl`` has the batches of every vector that was masked. One vector in two sums would be the difference of two
sums; so a study that asks for the same batches again, under another name, gets no vector.

An evaluation can be asked for again with a network that is almost the same. So ``summed.jsonl`` has the sites of the
first sum over each set of held-out scans, and each later one must be over the same sites.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from hashlib import sha256

from sahfl.config import SiteConfig
from sahfl.errors import MaskingRefused
from sahfl.federation.site.answered import MASKED
from sahfl.federation.site.round_list import Line, RoundList
from sahfl.masking.context import Context
from sahfl.masking.encoding import pack_names
from sahfl.payload import Header

DRAWN, SUMMED = "drawn.jsonl", "summed.jsonl"


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


def note_summed(
    config: SiteConfig, sum_: Context, header: Header, *, sites: Collection[str], scans: Collection[str]
) -> None:
    """Note the sites of a sum over held-out scans; a simulated site notes nothing.

    Args:
        config: of the site.
        sum_: the masked sum.
        header: names the training.
        sites: whose results are in the sum.
        scans: hash of the content of each scan of this site that is in it. Without any, nothing is refused.

    Raises:
        MaskingRefused: an earlier sum over the same scans has other sites; the difference could be one site's results.
        StorageError: the list cannot be read or written.
    """
    if config.simulated:
        return
    of_scans, of_sites = (sha256(pack_names(sorted(names))).hexdigest() for names in (scans, sites))
    line, summed = replace(Line.of(header, of_sites), method=of_scans), RoundList(config.folder / MASKED / SUMMED)
    if scans and any(one.method == of_scans and one.asked != of_sites for one in summed.lines()):
        text = "the same held-out scans are in a sum over other sites; the difference could be one site's results"
        remedy = "Evaluate at the same sites, or in a study with another seed, which holds out others"
        raise MaskingRefused(f"{sum_}: {text}. {remedy}")
    summed.add(line)
