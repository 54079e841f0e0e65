"""The check of a case by itself, for tests of the rules about one scan."""

from sahfl.data.checks import CheckedCase, check_cases
from sahfl.data.manifest import Case


def check_case(case: Case) -> CheckedCase:
    """The case as the only one of its site, checked."""
    (checked,) = check_cases([case])
    return checked
