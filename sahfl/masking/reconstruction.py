"""From shares back to a site's seed, with what tells a wrong share from a right one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, islice

from sahfl.errors import MaskingFailed
from sahfl.masking.sharing import SECRET_BYTES, Share, combine

MOST_TRIES = 250
"""Most choices of shares that are tried; with five sites and t = 3 there are 10."""


def reconstruct(
    shares: Mapping[str, Share], threshold: int, is_right: Callable[[bytes], bool], *, what: str
) -> tuple[bytes, list[str]]:
    """The secret, 32 bytes, of which sites revealed shares; and sites whose share does not fit it, if one was noticed.

    A wrong share does not give a wrong secret: the result passes ``is_right``. If the first shares do not, others are
    tried, as long as there are few choices. Shares that were not needed are looked at only then.

    Raises:
        MaskingFailed: there are too few shares, or no choice that was tried gives the secret; ``what`` is named.
    """
    if len(shares) < threshold:
        raise MaskingFailed(f"{what}: got {len(shares)} shares, expected at least {threshold}")
    for tried, chosen in enumerate(islice(combinations(shares.values(), threshold), MOST_TRIES)):
        secret = _bytes(combine(chosen, threshold))
        if secret is not None and is_right(secret):
            return secret, list(_others(shares, chosen, threshold)) if tried else []
    raise MaskingFailed(f"{what}: at least one of {len(shares)} shares is wrong, and the sum cannot be had")


def _others(shares: Mapping[str, Share], chosen: tuple[Share, ...], threshold: int) -> Iterator[str]:
    """The sites whose shares are not on the polynomial through the chosen ones."""
    right = set(chosen)
    for site, share in shares.items():
        if share not in right and combine(chosen, threshold, at=share[0]) != share[1]:
            yield site


def _bytes(secret: int) -> bytes | None:
    try:
        return secret.to_bytes(SECRET_BYTES, "big")
    except OverflowError:  # the field has 297 numbers more than there are secrets
        return None
