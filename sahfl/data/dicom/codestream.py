"""The size that packed pixels claim, read from their own header before a decoder takes memory for it."""

from __future__ import annotations

JPEG, JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Start of frame of JPEG (0xC0 to 0xCF, without tables and extensions) and of JPEG-LS (0xF7)."""


def claimed_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG, JPEG-LS or JPEG 2000 frame; None for another format, such as run lengths.

    Source: ITU-T T.81 B.2.2 (frame header), T.87 C.2.2, T.800 A.5.1 (SIZ).
    """
    if frame[:4] == JPEG_2000 and len(frame) >= 24:
        right, low, left, high = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
        return low - high, right - left
    if frame[:2] != JPEG:
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in _FRAME_MARKERS:
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        at += 1 if marker == 0xFF else 2 + length
    return None
