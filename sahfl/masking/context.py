"""Which round of which training a key, a signature or a mask belongs to; none is valid in another one."""

from __future__ import annotations

from dataclasses import dataclass

from sahfl.errors import PayloadError
from sahfl.masking.encoding import pack, unpack

LABEL = b"sahfl masking 1"
"""Begins every context; another version of the protocol has another label."""
ROUND_BYTES = 8


@dataclass(frozen=True)
class Context:
    """One masked sum. Each site takes part in it once.

    A sum that the server says that it did not get must not be tried again with the same vectors, as two sums over other
    survivors have one site's vector as their difference. An attempt that failed before any vector left may be: its
    number is part of ``agreed``.
    """

    study: str
    """Fingerprint of the study's settings."""
    training: str
    """Name of the training (``Header.training``)."""
    round: int
    """From 0 to 2^63."""
    purpose: str
    """What is summed: ``training`` or ``evaluation``."""
    agreed: str = ""
    """Hash of whatever else all sites must agree on: the consortium's list of sites, length, ring, bound, threshold."""

    def encode(self) -> bytes:
        """The context as bytes; different contexts have different bytes."""
        texts = (self.study, self.training, self.purpose, self.agreed)
        return pack(LABEL, *(text.encode() for text in texts), self.round.to_bytes(ROUND_BYTES, "big"))

    @classmethod
    def decode(cls, data: bytes) -> Context:
        """Read what ``encode`` wrote.

        Raises:
            PayloadError: it is damaged, or of another version.
        """
        fields = unpack(data)
        if len(fields) != 6 or fields[0] != LABEL or len(fields[5]) != ROUND_BYTES:
            raise PayloadError("context: is damaged, or of another version")
        try:
            study, training, purpose, agreed = (field.decode() for field in fields[1:5])
        except UnicodeDecodeError as error:
            raise PayloadError("context: is not UTF-8") from error
        return cls(study, training, int.from_bytes(fields[5], "big"), purpose, agreed)

    def __str__(self) -> str:
        return f"{self.purpose} {self.training}, round {self.round}"
