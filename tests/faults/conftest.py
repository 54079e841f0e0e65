"""What the tests of faults share."""

from in_process import federate, scans  # noqa: F401
