"""What the tests of faults share."""

from harness.asking import hospital  # noqa: F401
