"""Base networks that come with sahfl; each has a card beside it."""

from pathlib import Path

PHANTOM = Path(__file__).with_name("phantom.safetensors")
"""A small network that was trained on simulated patients alone; ``phantom.md`` is its card."""
PHANTOM_SHA256 = "1ae7fc7e9a97b1297783fe4cb1e4ad509585c6187de55d42c29e59b93990401e"
"""Hash of its tensors: what ``base: phantom`` means."""
