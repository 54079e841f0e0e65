"""The notebooks: their code runs from top to bottom in an empty folder, and they are stored without outputs."""

import json

import pytest
from test_local_study import ROOT, run_script

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
SHOWS = {
    "own_data": ["mL of blood at threshold 0.5"],
    "adapter_in_pytorch": ["numbers train", "with the adapter: Dice"],
}


def cells_of(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_each_notebook_is_here():
    assert {path.stem for path in NOTEBOOKS} == set(SHOWS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    assert {(cell["execution_count"], tuple(cell["outputs"])) for cell in cells_of(path, "code")} == {(None, ())}
    assert "/home/" not in path.read_text()


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem == "own_data")) for path in NOTEBOOKS],
)
def test_the_code_of_a_notebook_runs_and_shows_what_it_promises(path, tmp_path):
    code = "\n\n".join("".join(cell["source"]) for cell in cells_of(path, "code"))
    out, _ = run_script(code, tmp_path)
    for text in SHOWS[path.stem]:
        assert text in out
