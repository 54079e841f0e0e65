"""With whom a site shares masks and shares, and how many must stay: from the list of sites, the same at all of them.

Up to ``EVERYBODY`` sites, each site is a neighbour of each other one. Beyond, the list is laid out as a ring in a
random order, and a site's neighbours are the k / 2 sites before and behind it (a Harary graph), after Bell et al. 2020,
eprint 2020/704, section 3. Holders of a site's seeds are its neighbours and itself; q of these k + 1 must stay.

Their theorem 3.10 is about a server that follows the protocol. Ours may not, so k and q fulfil more: with gamma = 10 %
of all sites colluding and delta = 10 % dropping out,

- no site has more than c colluding neighbours, except with probability 2^-80 (hypergeometric, summed over all sites);
- 2q > k + 1 + c, so that holders can be made to reveal one kind of share of a site only (see the package);
- q holders of every site stay, except with probability 2^-30.

Then every sum that comes out has at least q - c honest sites in it: a survivor whose vector is summed has q holders
under one list of sharers and survivors, of these q - c are honest, and their masks with it cancel only if they are in
the sum. A server that picks among lists until a graph suits it gains one bit for each doubling of the lists that it
tries; 2^-80 leaves it 2^40 of them where Bell et al. want 2^-40. The order depends on keys that sites draw for the
round, so that nobody can know the neighbours before.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from sahfl.errors import MaskingRefused

LEAST_SITES = 3
"""A sum of two tells each of the two what the other sent."""
MOST_SITES = 10_000
EVERYBODY = 100
"""Most sites that all share with each other: it stays cheap, and bears a third of them colluding or dropping out."""
COLLUDING = DROPPING = 10
"""Per cent of all sites, beyond ``EVERYBODY``."""
SECURITY_BITS = 80
CORRECTNESS_BITS = 30


@dataclass(frozen=True)
class Terms:
    """How many sites a round needs."""

    n_sites: int
    threshold: int
    """Sites that must answer each step, t."""
    degree: int
    """Neighbours of a site, k."""
    quorum: int
    """Of a site and its neighbours, how many must answer each step: the threshold of its shares, q."""
    colluding: int
    """Most sites that may work together with the server, c; beyond ``EVERYBODY`` chosen without a look at the graph."""


def default_threshold(n_sites: int) -> int:
    """Two thirds of the sites, rounded up, and never fewer than three.

    A third of the sites may drop out, and 2t - n - 1, about a third, may collude with the server: 1 of 4, 2 of 5, 7 of
    20. The smallest threshold that is safe at all, just above n / 2, bears more drop-outs and no colluding site.
    """
    return max(LEAST_SITES, -(-2 * n_sites // 3))


def terms_of(n_sites: int, threshold: int | None = None) -> Terms:
    """The terms of a round, by default with ``default_threshold``, beyond ``EVERYBODY`` with all sites but 10 %.

    Raises:
        MaskingRefused: there are fewer than three sites, too many, or the threshold is not in (n / 2, n], or below
            three.
    """
    if not LEAST_SITES <= n_sites <= MOST_SITES:
        raise MaskingRefused(f"list of sites: got {n_sites}, expected {LEAST_SITES} to {MOST_SITES}")
    sparse = _sparse(n_sites) if n_sites > EVERYBODY else None
    colluding = n_sites * COLLUDING // 100 if sparse else 0
    least = max(LEAST_SITES, (n_sites + colluding) // 2 + 1)
    usual = n_sites - n_sites * DROPPING // 100 if sparse else default_threshold(n_sites)
    threshold = usual if threshold is None else threshold
    if not least <= threshold <= n_sites:
        raise MaskingRefused(f"threshold: got {threshold}, expected {least} to {n_sites} of {n_sites} sites")
    if sparse:
        return Terms(n_sites, threshold, *sparse, colluding)
    return Terms(n_sites, threshold, n_sites - 1, threshold, 2 * threshold - n_sites - 1)


@lru_cache(maxsize=64)
def _sparse(n_sites: int) -> tuple[int, int] | None:
    """Fewest neighbours (an even number), and the quorum of their shares; None if all others are needed."""
    colluding, dropping = n_sites * COLLUDING // 100, n_sites * DROPPING // 100
    for degree in range(2, n_sites - 1, 2):
        worst = most_marked(n_sites, colluding, degree, SECURITY_BITS)
        quorum = (degree + 1 + worst) // 2 + 1
        if degree - most_marked(n_sites, dropping, degree, CORRECTNESS_BITS) >= quorum:
            return degree, quorum
    return None


def most_marked(n_sites: int, marked: int, degree: int, bits: int) -> int:
    """The smallest c so that no site has more than c marked neighbours, except with probability 2^-bits.

    A site's neighbours are ``degree`` of the n - 1 others, each set as likely as another: the number of marked ones is
    hypergeometric. Its tail is taken n times, for all sites, in whole numbers, so that every machine finds the same c.
    """
    rest, c = n_sites - 1 - marked, min(marked, degree)
    ways = math.comb(marked, c) * math.comb(rest, degree - c)
    above, limit = 0, math.comb(n_sites - 1, degree)
    while c > 0 and (above + ways) * n_sites << bits <= limit:
        above += ways
        ways = ways * c * (rest - degree + c) // ((marked - c + 1) * (degree - c + 1))
        c -= 1
    return c


class Graph:
    """Holders of every site's seeds."""

    def __init__(self, sites: Sequence[str], terms: Terms, seed: bytes) -> None:
        self.terms = terms
        ordered = sorted(sites)
        if terms.degree == len(sites) - 1:
            self._holders = dict.fromkeys(ordered, tuple(ordered))
            return
        # Sorting by a hash is a random order, without the bias of drawing numbers.
        ring = sorted(ordered, key=lambda site: sha256(seed + site.encode()).digest())
        reach, n_sites = terms.degree // 2, len(ring)
        around = ring[-reach:] + ring + ring[:reach]
        self._holders = {ring[at]: tuple(around[at : at + 2 * reach + 1]) for at in range(n_sites)}

    def holders(self, site: str) -> tuple[str, ...]:
        """A site and its neighbours; the place of a holder, from 1, is the x of its share."""
        return self._holders[site]

    def neighbours(self, site: str) -> tuple[str, ...]:
        """The other sites that hold shares of a site, and whose shares it holds."""
        return tuple(other for other in self._holders[site] if other != site)

    def starved(self, sites: Collection[str], present: Collection[str]) -> list[str]:
        """Those of some sites of whose holders too few are present."""
        there, quorum = frozenset(present), self.terms.quorum
        if self.terms.degree == self.terms.n_sites - 1:
            return sorted(sites) if len(there) < quorum else []
        return sorted(site for site in sites if sum(other in there for other in self._holders[site]) < quorum)

    def core(self, present: Iterable[str]) -> frozenset[str]:
        """The sites present without those that have too few holders, until none is left out any more."""
        there = frozenset(present)
        while starved := self.starved(there, there):
            there -= frozenset(starved)
        return there

    def shortage(self, present: Collection[str], *, of: Collection[str] | None = None) -> str | None:
        """Why the sites that are present are too few for a sum of some sites, by default theirs; None if they are
        enough.
        """
        needed = max(self.terms.threshold, LEAST_SITES)
        if len(set(present)) < needed:
            return f"got {len(set(present))} sites, expected at least {needed} of {self.terms.n_sites}"
        if starved := self.starved(present if of is None else of, present):
            return f"fewer than {self.terms.quorum} holders of the shares of {starved[0]!r} are left"
        return None
