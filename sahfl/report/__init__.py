"""results.json -> one self-contained page and its figures."""

from sahfl.report.page import write_report

__all__ = ["write_report"]
