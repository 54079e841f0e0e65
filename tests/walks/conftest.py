"""What the walks share."""

from harness.asking import hospital  # noqa: F401
