"""A run ends with its table of methods and what to use, in words of the page's first box."""

import io
import re

import pytest
from rich.console import Console
from test_report_sample import gain

from sahfl.console import show_conclusion
from sahfl.report import conclude


def at_the_end(width=None):
    """What ``show_conclusion`` prints of the sample: in a terminal of this width, or into a file."""
    target = Console(file=io.StringIO(), width=width, force_terminal=width is not None, color_system=None)
    show_conclusion(conclude(gain()), target)
    return target.file.getvalue()


def test_a_run_ends_with_its_table_and_what_to_use_in_plain_text():
    text = at_the_end()
    first, title, *lines = text.splitlines()
    assert first.startswith("SIMULATED. All scans are made by a program.")
    assert title.strip() == "Methods on held-out scans with blood"
    (row,) = [re.sub(" {2,}", "  ", line) for line in lines if line.startswith("CP-LoRA (rank 8) ")][:1]
    change = "0.503 (0.441 to 0.560)  +0.091 (+0.050 to +0.132)"
    assert row == f"CP-LoRA (rank 8)  {change}  better  101,234  0.41 MB  9.9 s"
    assert " ".join(conclude(gain()).use.split()) in " ".join(text.split())
    for point in conclude(gain()).points:
        assert any(line.startswith(point.label) for line in lines), point.label
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [80, 110, 140])
def test_in_a_terminal_nothing_of_the_table_is_cut(width):
    text = at_the_end(width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "…" not in text
    for part in ("0.503", "+0.091", "better", "101,234", "0.41 MB", "9.9 s", "812,345"):
        assert part in text, part
