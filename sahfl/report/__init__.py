"""results.json -> one self-contained page and its figures, and the conclusion of a study in words."""

from sahfl.report.form import check_results
from sahfl.report.page import write_report
from sahfl.report.summary import Conclusion, conclude

__all__ = ["Conclusion", "check_results", "conclude", "write_report"]
