"""How a CT series was made, from its header: contrast agent and reconstruction kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sahfl.data.dicom.header import private, read_elements

NO_AGENT = frozenset({"", "0", "-", "N", "NA", "NO", "NON", "NONE", "NIL", "NATIV", "NATIVE", "PLAIN", "WO", "WITHOUT"})
"""Entries of ContrastBolusAgent that mean "none": all of its letters and digits, or its first word."""
SHARP_WORDS = frozenset({"BONE", "BONEPLUS", "EDGE", "LUNG", "SHARP", "ULTRA"})
"""Words that name kernels for bone or lung (GE and others)."""
NUMBERED = re.compile(r"[A-Z][a-z]?(\d\d)[a-z]?")
"""Siemens: ``H30s``, ``Hr40f``, ``J70h``; the number is the sharpness, 60 and above is for bone and lung."""
SHARP_NUMBER = 60
SHARP_CODE = re.compile(r"FC(?:3[01]|5\d|8\d)", re.IGNORECASE)
"""Canon (Toshiba): FC30, FC31 and FC80s for bone, FC50s for lung."""


def judge_protocol(path: Path) -> Iterator[tuple[str, str]]:
    """Rule and text for each problem in the header of a series' slice; the text never quotes the header."""
    with private():
        header = read_elements(path, ("ContrastBolusAgent", "ConvolutionKernel"))
        agent, kernel = (_first(header.get(name)) for name in ("ContrastBolusAgent", "ConvolutionKernel"))
    if names_agent(agent):
        yield "contrast_agent", "the header names a contrast agent"
    if is_sharp(kernel):
        yield "sharp_kernel", "the header names a kernel for bone or lung"


def names_agent(text: str) -> bool:
    """Test whether ContrastBolusAgent names an agent, rather than "none"."""
    words = re.findall(r"[A-Z0-9]+", text.upper().replace("/", ""))
    return bool(words) and words[0] not in NO_AGENT


def is_sharp(kernel: str) -> bool:
    """Test whether a kernel's name is a known one for bone or lung; False for unknown names."""
    if numbered := NUMBERED.fullmatch(kernel):
        return int(numbered[1]) >= SHARP_NUMBER
    return bool(SHARP_CODE.fullmatch(kernel)) or bool(SHARP_WORDS & set(re.findall(r"[A-Z]+", kernel.upper())))


def _first(value: object) -> str:
    """An element's text, or the first of several: Siemens writes the kernel's strength as a second value."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return "" if value is None else str(value).strip()
