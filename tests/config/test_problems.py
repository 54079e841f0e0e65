"""A settings file's problems teach: the line, the words, and what was probably meant."""

import pytest
from harness.tiny_study import TINY, changed

from sahfl.config import Study, kind_of, load_site, load_study, parse
from sahfl.errors import ConfigError
from sahfl.problems import NOTES, SYNONYMS
from sahfl.section import Section
from sahfl.section_tree import all_sections
from sahfl.settings_file import as_yaml, load, read_settings

STUDY = """name: taught
data:
  source: phantom
  shape: [32, 32, 8]
  spacing_mm: [6.0, 6.0, 12.0]
  sites: {graz: {kind: tbi, n_cases: 2}, no: {kind: sah, n_cases: 3}}
pretrain: {sites: [graz], rounds: 1, local: {steps: 2}}
finetune:
  sites: [no]
  rounds: 1
  local: {steps: 2}
  methods:
    - {method: zero_shot}
    - {method: cp_lora, learning_rate: 1e-3}
"""


def problems(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_study(tmp_path / "study.yaml")
    first, *rest = str(caught.value).splitlines()
    assert first == f"{tmp_path / 'study.yaml'}: {len(rest)} problem{'s' * (len(rest) > 1)}"
    return [line.strip() for line in rest]


MEANT = {
    "sites: [no]": ("sites: no", "expected a list, got 'no'; did you mean [no]?"),
    "rounds: 1\n  local": ("rounds: '1'\n  local", "expected a whole number, got '1'; take the quotes off"),
    "learning_rate: 1e-3": ("learning_rate: '1e-3'", "expected a number or a list, got '1e-3'; take the quotes off"),
    "cp_lora, ": ("cp_lora, rank: [2, 4], ", "whole number; a list of values stands in an entry of finetune.grid"),
    "cp_lora, l": ("cp_lora, aggregation: FedAvg, l", "got 'FedAvg'; did you mean mean?"),
    "pretrain: {sites: [graz], rounds: 1, local: {steps: 2}}": (
        "base: runs/a/base/base.safetensors",
        "got 'runs/a/base/base.safetensors'; did you mean {path: runs/a/base/base.safetensors}?",
    ),
}


@pytest.mark.parametrize(("old", "new", "text"), [(old, *wrong) for old, wrong in MEANT.items()])
def test_what_was_probably_meant_by_a_value_is_said(tmp_path, old, new, text):
    assert STUDY.count(old) == 1
    (found,) = problems(tmp_path, STUDY.replace(old, new))
    assert found.endswith(text)


def test_a_folder_in_the_place_of_a_settings_file_is_named_with_what_writes_one(tmp_path):
    with pytest.raises(ConfigError, match="is a folder, expected a settings file"):
        load_study(tmp_path)


# --- YAML 1.2 -------------------------------------------------------------------------------------------------------


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "{a: 1e-3, b: 1E3, c: .5, d: 0o17, e: 0x1F, f: no, g: 1:30, h: 1_000, i: 2026-11-29, j: true, k: ~, l: -.INF}"
    )
    assert read_settings(tmp_path / "a.yaml").content == {
        **{"a": 0.001, "b": 1000.0, "c": 0.5, "d": 15, "e": 31, "f": "no", "g": "1:30", "h": "1_000"},
        **{"i": "2026-11-29", "j": True, "k": None, "l": float("-inf")},
    }


def test_a_study_takes_a_rate_with_an_exponent_and_a_site_named_no(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    study = load_study(tmp_path / "study.yaml")
    assert (study.finetune.sites, study.finetune.methods[1].learning_rate) == (("no",), 0.001)


def test_a_name_is_the_text_that_stands_there_so_that_none_is_lost(tmp_path):
    (tmp_path / "a.yaml").write_text("{01: 1, 1: 2, 0x1: 3, true: 4, 1.0: 5, <<: {1e0: 6}}")
    file = read_settings(tmp_path / "a.yaml")
    assert file.content == {"01": 1, "1": 2, "0x1": 3, "true": 4, "1.0": 5, "1e0": 6}
    assert file.lines.keys() == {(name,) for name in file.content}


TEXTS = ["a\u0085b", "\u2028", "\n", "\ufeff", "\u200b", "012", "1e-3", "null", "", "~", "yes", "2026-12-01", "<<"]


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_that_is_printed_is_read_back_as_it_was(tmp_path, text):
    class Texts(Section):
        texts: tuple[tuple[str, ...], ...]
        by_name: dict[str, str]

    section = Texts(texts=((text, f"a {text}"),), by_name={text: text})
    (tmp_path / "a.yaml").write_text(as_yaml(section), encoding="utf-8")
    assert load(Texts, tmp_path / "a.yaml") == section


def test_every_setting_has_its_line(tmp_path):
    (tmp_path / "a.yaml").write_text("# first\na: 1\n\nb:\n  - {c: 2}\n  -\n    c: 3\n")
    lines = read_settings(tmp_path / "a.yaml").lines
    assert lines == {("a",): 2, ("b",): 4, ("b", 0): 5, ("b", 0, "c"): 5, ("b", 1): 7, ("b", 1, "c"): 7}


def test_a_number_of_thousands_of_digits_is_refused(tmp_path):
    assert load_error(tmp_path, "seed: " + "9" * 5000).startswith(f"{tmp_path / 'a.yaml'}: is not YAML: Exceeds")


def test_tabs_and_colons_in_a_text_have_a_remedy(tmp_path):
    assert "line 2: is not YAML: " in load_error(tmp_path, "a:\n\tb: 1")
    assert load_error(tmp_path, "a:\n\tb: 1").endswith("indent with spaces, not with tabs")
    assert load_error(tmp_path, "name: my study: two").endswith("put a text that contains ': ' between quotes")


def load_error(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        kind_of(tmp_path / "a.yaml")
    return str(caught.value)


# --- what was meant -------------------------------------------------------------------------------------------------

MEANT = {
    "typing-error": (
        "cp_lora, ",
        "cp_lora, rnak: 2, ",
        "line 14, finetune.methods.1.rnak: is not a setting; did you mean rank?",
    ),
    "other-program": ("cp_lora, ", "cp_lora, r: 2, ", "line 14, finetune.methods.1.r: is called rank here"),
    "peft": ("cp_lora, ", "cp_lora, lora_alpha: 2, ", "line 14, finetune.methods.1.lora_alpha: is called alpha here"),
    "lr": (
        "  rounds: 1\n",
        "  rounds: 1\n  lr: 0.1\n",
        "line 11, finetune.lr: is called learning_rate, and belongs in an entry of finetune.methods or finetune.grid",
    ),
    "wrong-section": ("name: taught\n", "name: taught\nmethods: []\n", "line 2, methods: belongs under finetune"),
    "wrong-depth": (
        "  rounds: 1\n",
        "  rounds: 1\n  steps: 3\n",
        "line 11, finetune.steps: belongs under finetune.local",
    ),
    "epochs": (
        "  rounds: 1\n",
        "  rounds: 1\n  epochs: 3\n",
        "line 11, finetune.epochs: is called rounds here (a site trains local.steps steps in each of the rounds)",
    ),
    "top-epochs": (
        "name: taught\n",
        "name: taught\nepochs: 3\n",
        "line 2, epochs: is called rounds, and belongs under pretrain or under finetune or in an entry of "
        "finetune.methods or finetune.grid (a site trains local.steps steps in each of the rounds)",
    ),
    "device": (
        "name: taught\n",
        "name: taught\ndevice: cuda\n",
        "line 2, device: is not a setting here (a site file has it; a simulation computes on the processor)",
    ),
    "other-kind": (
        "{method: zero_shot}",
        "{method: zero_shot, rank: 2}",
        "line 13, finetune.methods.0.rank: is not a setting of zero_shot, which has method, base_of",
    ),
    "repeats": (
        "{method: cp_lora,",
        "{method: cp_lora, repeats: 2,",
        "line 14, finetune.methods.1.repeats: is not a setting here (an entry of finetune.grid has it, such as "
        "{method: cp_lora, rank: 8, repeats: 2})",
    ),
    "base": (
        "pretrain: {sites: [graz], rounds: 1, local: {steps: 2}}",
        "base: {path: a, sha256: b}",
        "line 7, base.sha256: is not a setting; did you mean content_sha256?",
    ),
    "value": (
        "{method: cp_lora,",
        "{method: cp-lora,",
        "line 14, finetune.methods.1.method: expected 'zero_shot', 'full', 'encoder', 'bottleneck', 'decoder', "
        "'last_layer', 'norm_bias', 'lora_c', 'conv_lora', 'cp_lora', 'dora_c', 'conv_dora' or 'cp_dora', got "
        "'cp-lora'; did you mean cp_lora?",
    ),
    "source": (
        "source: phantom",
        "source: phantoms",
        "line 3, data.source: expected 'phantom', 'datalist', 'folder' or 'sites', got 'phantoms'; did you mean "
        "phantom?",
    ),
    "missing": ("  rounds: 1\n", "", "line 8, finetune.rounds: is missing (Rounds per fold and method)"),
    "union": (
        "learning_rate: 1e-3",
        "learning_rate: [0.1, high]",
        "line 14, finetune.methods.1.learning_rate.1: expected a number, got 'high'",
    ),
    "both-kinds": (
        "learning_rate: 1e-3",
        "learning_rate: high",
        "line 14, finetune.methods.1.learning_rate: expected a number or a list, got 'high'",
    ),
    "whole": ("name: taught\n", "name: taught\nseed: true\n", "line 2, seed: expected a whole number, got true"),
    "long": (
        "name: taught",
        f"name: {'a' * 200}",
        f"line 1, name: expected 1 to 40 lower-case letters, digits, '-' and '_', got '{'a' * 79}...",
    ),
}


@pytest.mark.parametrize(("old", "new", "message"), MEANT.values(), ids=MEANT.keys())
def test_a_message_names_the_line_and_what_was_meant(tmp_path, old, new, message):
    assert STUDY.count(old) == 1
    assert problems(tmp_path, STUDY.replace(old, new)) == [message]


def test_the_remedies_of_the_messages_give_a_study_that_loads(tmp_path):
    text = STUDY.replace("learning_rate: 1e-3", "rank: 2, alpha: 2").replace("  rounds: 1\n", "  rounds: 3\n")
    (tmp_path / "study.yaml").write_text(text)
    assert load_study(tmp_path / "study.yaml").finetune.rounds == 3


def test_a_setting_of_a_site_file_is_explained_too(tmp_path):
    (tmp_path / "site.yaml").write_text(
        "name: bern\nfolder: work\ndata: {source: folder, path: scans}\npolicy:\n  adapters: {most_lr: 1}\n  gpu: 1\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_site(tmp_path / "site.yaml")
    assert "line 5, policy.adapters.most_lr: is not a setting" in str(caught.value)
    assert "line 6, policy.gpu: is not a setting here (a site file has device" in str(caught.value)


def test_settings_without_a_file_have_no_lines():
    with pytest.raises(ConfigError, match=r"^test: 1 problem\n  seed: expected at least 0, got -1$"):
        parse(Study, changed(TINY, seed=-1), where="test")


def test_every_synonym_leads_to_a_setting_of_a_study_and_is_none_itself():
    names = {name for _, section in all_sections(Study, ()) for name in section.model_fields}
    assert set(SYNONYMS.values()) <= names
    assert not (set(SYNONYMS) - {"model"}) & names
    assert not set(NOTES) & names
