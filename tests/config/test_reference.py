"""The reference page and the editors' schemas are those of the configuration classes."""

import json
import runpy
from pathlib import Path

import jsonschema
import pytest
import yaml
from harness.tiny_study import TINY, changed

from sahfl.config import kind_of
from sahfl.schemas import schema_of
from sahfl.settings_file import read_settings

ROOT = Path(__file__).parents[2]
MADE = runpy.run_path(str(ROOT / "docs" / "reference.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_the_page_is_what_its_program_writes():
    assert (ROOT / "docs" / "reference.md").read_text() == MADE["page"](), "run python docs/reference.py"


def test_the_schemas_are_what_their_program_writes():
    for path, text in MADE["schemas"]().items():
        assert path.read_text() == text, "run python docs/reference.py"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_in_configs_passes_its_schema(path):
    schema = json.loads(schema_of(kind_of(path)).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(read_settings(path).content, schema)


WRONG = {
    "unknown": ({"seed": 1, "colour": "red"}, "colour"),
    "nested": ({"finetune": {"lr": 0.1}}, "lr"),
    "method": ({"finetune": {"methods": [{"method": "cp_lra"}]}}, "cp_lra"),
    "bound": ({"seed": -1}, "-1"),
    "source": ({"data": {"source": "csv"}}, "is not"),
    "network": ({"model": {"size": "huge"}}, "huge"),
    "base": ({"base": "phantoms"}, "phantoms"),
}


@pytest.mark.parametrize(("change", "named"), WRONG.values(), ids=WRONG.keys())
def test_the_schema_of_a_study_refuses_what_the_loader_refuses(change, named):
    schema = json.loads(schema_of("study").read_text())
    settings = yaml.safe_load(yaml.safe_dump(changed(TINY)))
    jsonschema.validate(settings, schema)
    for name, value in change.items():
        settings[name] = settings[name] | value if isinstance(settings.get(name), dict) else value
    with pytest.raises(jsonschema.ValidationError, match=named):
        jsonschema.validate(settings, schema)


def test_the_page_explains_every_setting_of_every_file():
    page = (ROOT / "docs" / "reference.md").read_text()
    for name in (
        "content_sha256",
        "learning_rate",
        "smallest_bootstrap",
        "wait_for_sites_s",
        "valid_days",
        "spacing_mm",
    ):
        assert f"| `{name}` |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert not [row for row in rows if row.endswith("|  |")], "a setting without a docstring"
