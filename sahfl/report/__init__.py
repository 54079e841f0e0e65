"""results.json -> one self-contained page and its figures.

text      numbers and units for readers; an unknown value is a dash
summary   names and colours of methods, the headline, the key figures
figures   PNG pictures with alternative text
tables    rows of every table
page      fills ``report.html.j2`` and writes the files
"""

from sahfl.report.page import write_report

__all__ = ["write_report"]
