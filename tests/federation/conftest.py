"""What the tests of the federation share."""

from in_process import federate, scans  # noqa: F401
