"""A run ends with its table of methods and what to use, in words of the page's first box."""

import io
import re

import pytest
from rich.console import Console
from test_report_sample import gain

from sahfl.console import show_conclusion
from sahfl.report.summary import conclude


def at_the_end(width=None, results=None):
    """What ``show_conclusion`` prints of results (the sample): in a terminal of this width, or into a file."""
    target = Console(file=io.StringIO(), width=width, force_terminal=width is not None, color_system=None)
    show_conclusion(conclude(results or gain()), target)
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


@pytest.mark.parametrize("trainings", [1, 2], ids=["marked", "plain"])
@pytest.mark.parametrize("width", [None, 80, 97, 110, 130, 140])
def test_no_line_ends_inside_the_name_of_a_method(width, trainings):
    results = gain()
    for one in (*results["methods"], *results["comparisons"]):
        one["metrics"]["dice"]["overall"]["trainings"] = trainings
    text = at_the_end(width, results)
    assert ("‡" in text) == (trainings == 1)
    assert all(len(line.rstrip()) <= (width or 130) for line in text.splitlines())
    assert re.search(r"^CP-LoRA \(rank 8\) ", text, re.MULTILINE)
    together, apart = r"CP-LoRA \(rank 8\)", r"CP-LoRA\s+\(rank\s+8\)"
    assert len(re.findall(together, text)) == len(re.findall(apart, text)) > 2
    assert len(re.findall("full fine-tuning", text)) == len(re.findall(r"full\s+fine-tuning", text)) > 0
    assert text.isascii() or not re.search("[\ue000-\uf8ff]", text)
