"""Random seeds derived from names, so that no result depends on the order or the process of the work."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from the parts, for example ``derive_seed(study.seed, "finetune", site, fold, round)``.

    Guarantees: the same parts give the same seed on every machine and Python version; parts are not simply joined
    (``("a", "bc")`` and ``("ab", "c")`` differ).
    """
    # A separator within a part is doubled; one between parts is followed by a type's name, so the two differ.
    texts = (str(part).replace("\x1f", "\x1f\x1f") for part in parts)
    text = "\x1f".join(f"{type(part).__name__}:{text}" for part, text in zip(parts, texts, strict=True))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
