"""Numbers and units for readers; an unknown value is a dash, never ``None`` or ``nan``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

DASH = "–"
ONCE = "‡"
"""Marks an interval over patients only, because the method was trained once."""
Results = Mapping[str, Any]
"""results.json, schema 3, or a part of it."""


def number(value: float | None, digits: int = 3) -> str:
    """Fixed decimals with a true minus sign: ``0.412``, ``−3.1``."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    # A sign in "-0.000" would suggest a direction.
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """Same as ``number``, with a plus sign for gains: ``+0.082``."""
    text = number(value, digits)
    return f"+{text}" if value is not None and text != DASH and float(text.replace("−", "-")) > 0 else text


def interval(of: Results | None, digits: int = 3, *, plus: bool = False) -> str:
    """``low to high`` of an estimate, or a dash."""
    if of is None or of["low"] is None or of["high"] is None:
        return DASH
    show = signed if plus else number
    return f"{show(of['low'], digits)} to {show(of['high'], digits)}"


def marked_interval(of: Results | None, digits: int = 3, *, plus: bool = False) -> str:
    """``interval`` of an estimate, with the mark ``ONCE`` if its method was trained once."""
    within = interval(of, digits, plus=plus)
    return f"{within} {ONCE}" if of is not None and within != DASH and of["trainings"] == 1 else within


def estimate(value: float | None, of: Results, digits: int = 3) -> str:
    """A value with its interval in brackets, if known: ``0.412 (0.350 to 0.469)``."""
    within = marked_interval(of, digits)
    return number(value, digits) if within == DASH else f"{number(value, digits)} ({within})"


def p_value(p: float | None) -> str:
    """Three decimals, or ``< 0.001``."""
    if p is None or not math.isfinite(p):
        return DASH
    return "< 0.001" if p < 0.0005 else f"{p:.3f}"


def stratum_name(label: str) -> str:
    """``≥ 30 mL`` for ``>= 30 mL``."""
    return label.replace(">=", "≥")


def whole(value: int | None) -> str:
    """Digits in groups of three: ``812,345``."""
    return DASH if value is None else f"{value:,}"


def short(value: float) -> str:
    """A round number, abbreviated: ``100``, ``10 k``, ``1 M``."""
    for scale, unit in ((1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:g}"


def short_size(n_bytes: float) -> str:
    """A round number of bytes, abbreviated: ``100 B``, ``10 kB``, ``1 MB``."""
    text = short(n_bytes)
    return f"{text}B" if " " in text else f"{text} B"


def count(n: int, noun: str) -> str:
    """``1 patient``, ``30 patients``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def size(n_bytes: float | None) -> str:
    """Decimal units: ``812 B``, ``41 kB``, ``0.40 MB``, ``26.4 MB``."""
    if n_bytes is None:
        return DASH
    if n_bytes < 1e3:
        return f"{n_bytes:.0f} B"
    if n_bytes < 1e5:
        return f"{n_bytes / 1e3:.1f} kB" if n_bytes < 1e4 else f"{n_bytes / 1e3:.0f} kB"
    unit, scale = ("MB", 1e6) if n_bytes < 1e9 else ("GB", 1e9)
    value = n_bytes / scale
    return f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}"


def percent(part: float | None, of: float | None) -> str:
    """Two significant digits below 10 %: ``0.84 %``, ``1.5 %``, ``12 %``."""
    if part is None or not of:
        return DASH
    share = 100 * part / of
    return f"{share:.0f} %" if share >= 9.95 or share == 0 else f"{share:.2g} %"


def duration(seconds: float | None) -> str:
    """The two largest units: ``8.2 s``, ``5 min 1 s``, ``2 h 14 min``."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(stamp: str | None) -> str:
    """``22 November 2026, 14:00 UTC`` from ISO 8601."""
    if stamp is None:
        return DASH
    at = datetime.fromisoformat(stamp)
    return f"{at.day} {at:%B %Y, %H:%M} {at.tzname() or ''}".rstrip()
