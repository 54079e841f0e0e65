"""What the tests of faults share."""

from asking import hospital  # noqa: F401
from in_process import federate, scans  # noqa: F401
