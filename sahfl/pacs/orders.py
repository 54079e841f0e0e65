"""The list of studies to fetch: which study gets which pseudonym."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sahfl.csv_table import Row, read_table
from sahfl.errors import ConfigError

PSEUDONYM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Names folders, and becomes the patient's id."""
UID = re.compile(r"[0-9]+(\.[0-9]+)+")
COLUMNS = "study (StudyInstanceUID) or accession (AccessionNumber), pseudonym, and if wanted patient"


@dataclass(frozen=True)
class Order:
    """One study to fetch; its repr shows only the pseudonym."""

    pseudonym: str
    """Names the folder of the study."""
    patient: str
    """Pseudonym of the patient; the same for several studies of one patient."""
    study: str = ""
    accession: str = ""

    def __repr__(self) -> str:
        return f"Order({self.pseudonym!r})"


def read_orders(path: Path) -> tuple[Order, ...]:
    """The studies of a CSV file (``csv_table``).

    Raises:
        DataError: it cannot be read.
        ConfigError: lines have problems; the message lists their numbers, and quotes no identifier.
    """
    table = read_table(path)
    names = set(table.columns)
    if "pseudonym" not in names or not names & {"study", "accession"}:
        raise ConfigError(f"{path}: expected a table with the columns {COLUMNS}")
    numbered = [(row.line, _order(row)) for row in table.rows]
    problems = [f"line {number}: {found}" for number, found in numbered if isinstance(found, str)]
    orders = [found for _, found in numbered if isinstance(found, Order)]
    # Without regard to case, because some file systems have none.
    often = Counter(order.pseudonym.lower() for order in orders)
    problems += [f"pseudonym {name!r} is given {n} times, expected once" for name, n in often.items() if n > 1]
    asked = Counter((order.study, order.accession) for order in orders)
    problems += [f"a study is listed {n} times, expected once" for n in asked.values() if n > 1]
    if problems or not orders:
        listed = "\n".join(f"  {problem}" for problem in problems[:20] or ["no study"])
        raise ConfigError(f"{path}: {max(len(problems), 1)} problem(s)\n{listed}")
    return tuple(orders)


def _order(row: Row) -> Order | str:
    """A line's study, or what is wrong with it."""
    study, accession, pseudonym = (row.fields.get(name, "") for name in ("study", "accession", "pseudonym"))
    patient = row.fields.get("patient", "") or pseudonym
    if not PSEUDONYM.fullmatch(pseudonym) or not PSEUDONYM.fullmatch(patient):
        return "pseudonym and patient must be 1 to 64 letters, digits, _ and -, and begin with a letter or digit"
    if bool(study) == bool(accession):
        return "expected either a study or an accession"
    if study and (not UID.fullmatch(study) or len(study) > 64):
        return "study is no StudyInstanceUID"
    if len(accession) > 16 or re.search(r"[*?\\\x00-\x1f]", accession):
        return "accession is no AccessionNumber of at most 16 characters; * and ? would match other patients"
    return Order(pseudonym, patient, study, accession)
