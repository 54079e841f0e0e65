"""A masked round in one process: the sites, their signatures, and a server that sites may leave at any step."""

from functools import cache
from hashlib import sha256

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sahfl.masking.collector import Collector
from sahfl.masking.context import Context
from sahfl.masking.party import Party
from sahfl.masking.site_list import SignedAdvert

CONTEXT = Context("f" * 64, "cp_lora-r8, fold 0", 3, "training", "roster")
STEPS = ("advertise", "share", "mask", "confirm", "reveal")
NAMES = ("bern", "graz", "linz", "thun", "wels")


def secret_of(site, seed=0):
    return sha256(f"{site} {seed}".encode()).digest()


@cache
def identity(site):
    return Ed25519PrivateKey.from_private_bytes(sha256(f"certificate of {site}".encode()).digest())


def sign(site, document):
    return identity(site).sign(document)


def verify(site, document, signature):
    try:
        identity(site).public_key().verify(signature, document)
    except InvalidSignature:
        return False
    return True


def party(site, context=CONTEXT, threshold=3, seed=0):
    return Party(context, site, secret=secret_of(site, seed), threshold=threshold)


def signed(one, context=CONTEXT):
    advert = one.advertise()
    return SignedAdvert(advert, sign(advert.site, advert.document(context)))


def numbers(site, length=7, dtype=np.uint32):
    """A vector of a site's own, with numbers all over the ring."""
    rng = np.random.default_rng(int.from_bytes(secret_of(site)[:8], "big"))
    return rng.integers(0, np.iinfo(dtype).max, length, dtype, endpoint=True)


def plain_sum(sites, length=7, dtype=np.uint32):
    return np.sum([numbers(site, length, dtype) for site in sites], axis=0, dtype=dtype)


class Round:
    """A round that goes step by step; a site in ``leaves`` answers that step, and every later one, no more.

    Each site is written to bytes and read again after every answer, as after a restart.
    """

    def __init__(self, names=NAMES, *, leaves=None, threshold=3, context=CONTEXT, length=7, bits=32, restarts=True):
        self.leaves, self.context, self.length, self.bits = leaves or {}, context, length, bits
        self.parties = {site: party(site, context, threshold) for site in names}
        self.collector = Collector(context, verify, length=length, bits=bits, threshold=threshold)
        self.restarts, self.shares, self.revealed = restarts, {}, {}

    def there(self, step, among):
        """The sites that answer a step, of those that are asked."""
        return [
            s
            for s in among
            if STEPS.index(self.leaves.get(s, "reveal")) >= STEPS.index(step) and self.leaves.get(s) != step
        ]

    def kept(self, site):
        if self.restarts:
            self.parties[site] = Party.from_bytes(self.parties[site].to_bytes(), secret=secret_of(site))

    def advertise(self):
        for site in self.there("advertise", self.parties):
            self.collector.advertised(signed(self.parties[site], self.context))
            self.kept(site)
        self.listed = self.collector.list_sites()

    def share(self):
        for site in self.there("share", [entry.advert.site for entry in self.listed]):
            self.shares[site] = self.parties[site].share(self.listed, verify)
            self.collector.shared(site, self.shares[site])
            self.kept(site)
        self.deliveries = self.collector.deliver()

    def vector(self, site):
        return numbers(site, self.length, self.collector._sum.dtype.type)

    def mask(self):
        for site in self.there("mask", self.deliveries):
            delivery = self.deliveries[site]
            masked = self.parties[site].mask(self.vector(site), delivery.received, delivery.sharers)
            self.collector.masked(site, masked)
            self.kept(site)
        self.survivors = self.collector.survivors()

    def confirm(self):
        for site in self.there("confirm", self.survivors):
            self.collector.confirmed(site, sign(site, self.parties[site].confirm(self.survivors)))
            self.kept(site)
        self.confirmations = self.collector.confirmations()

    def reveal(self):
        for site in self.there("reveal", self.confirmations):
            self.revealed[site] = self.parties[site].reveal(self.survivors, self.confirmations, verify)
            self.collector.revealed(site, self.revealed[site])
            self.kept(site)

    def until(self, last):
        for step in STEPS[: STEPS.index(last) + 1]:
            getattr(self, step)()
        return self

    def total(self):
        self.until("reveal")
        return self.collector.total()
