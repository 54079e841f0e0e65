"""A study file is read once, and everything that is wrong with it is said in one message."""

import re
from pathlib import Path

import pytest
import yaml
from harness.tiny_study import TINY, changed

from sahfl.config import Section, Study, kind_of, load_consortium, load_server, load_site, load_study, parse
from sahfl.data.sources.datalist import StudyScansDatalist
from sahfl.data.sources.phantom import StudyScansPhantom
from sahfl.errors import ConfigError
from sahfl.simulation.simulate import site_configs

ROOT = Path(__file__).parents[2]

STUDY = """
name: small
seed: 3
data:
  source: phantom
  shape: [32, 32, 8]
  spacing_mm: [6.0, 6.0, 12.0]
  sites:
    graz: {kind: tbi, n_cases: 2}
    bern: {kind: sah, n_cases: 3}
    linz: {kind: sah, n_cases: 3}
pretrain: {sites: [graz], rounds: 1, local: {steps: 2}}
finetune:
  sites: [bern, linz]
  rounds: 1
  local: {steps: 2}
  methods:
    - {method: zero_shot}
    - {method: cp_lora, rank: 2}
"""
FROM_DISK = STUDY[: STUDY.index("data:")] + "data: {source: datalist, path: %s}\n" + STUDY[STUDY.index("pretrain:") :]


def study_file(folder, text=STUDY):
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder, *changes):
    """The message for the study with some of its text replaced."""
    text = STUDY
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    with pytest.raises(ConfigError) as caught:
        load_study(study_file(folder, text))
    return str(caught.value)


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_study_is_read_as_typed_values_with_defaults_filled_in(tmp_path):
    study = load_study(study_file(tmp_path))
    assert isinstance(study.data, StudyScansPhantom)
    assert study.data.sites["bern"].n_cases == 3
    assert study.data.sites["bern"].profile == "standard"
    assert [method.id for method in study.finetune.methods] == ["zero_shot", "cp_lora-r2"]
    assert study.finetune.methods[1].alpha == 16.0
    assert study.rounds.quorum == 0.6


def test_a_study_cannot_be_changed_after_reading(tmp_path):
    study = load_study(study_file(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        study.seed = 4


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_file_in_configs_loads_as_what_it_is(path):
    loaders = {"site": load_site, "consortium": load_consortium, "server": load_server}
    assert loaders.get(path.name.partition(".")[0], load_study)(path)


def sections(of=Section):
    return [of, *(inner for child in of.__subclasses__() for inner in sections(child))]


@pytest.mark.parametrize("section", sections()[1:], ids=lambda section: section.__name__)
def test_every_setting_is_documented(section):
    assert section.__doc__
    assert [name for name, field in section.model_fields.items() if not field.description] == []


# --- site files -----------------------------------------------------------------------------------------------------

SITE = "name: bern\nfolder: work\ndata: {source: datalist, path: scans/list.json}\n"


def test_a_site_file_is_told_from_a_study_file_by_its_content(tmp_path):
    (tmp_path / "a.yaml").write_text(SITE)
    assert kind_of(tmp_path / "a.yaml") == "site"
    assert kind_of(study_file(tmp_path)) == "study"


@pytest.mark.parametrize("text", ["name: bern\n", SITE + "finetune: {}\n", "{}"], ids=["neither", "both", "empty"])
def test_a_file_that_is_neither_is_refused_naming_the_forms(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    forms = r"a study file \(.*finetune\), nor a site file \(.*folder.*\), nor a consortium file \(.*server"
    with pytest.raises(ConfigError, match=f"a.yaml: is neither {forms}"):
        kind_of(tmp_path / "a.yaml")


def test_relative_paths_of_a_site_file_start_at_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "a.yaml").write_text(SITE)
    site = load_site(tmp_path / "a.yaml")
    assert (site.folder, site.data.path) == (tmp_path / "work", tmp_path / "scans" / "list.json")
    assert (site.max_refused_share, site.policy.share_scan_keys) == (0.0, False)


def test_all_problems_of_a_site_file_are_reported_in_one_message(tmp_path):
    (tmp_path / "a.yaml").write_text(SITE + "max_refused_share: 1.5\ncolour: red\n")
    with pytest.raises(
        ConfigError, match=r"(?s)2 problems.*max_refused_share: expected at most 1, got 1.5.*colour: is not a setting"
    ):
        load_site(tmp_path / "a.yaml")


# --- what is wrong --------------------------------------------------------------------------------------------------


def test_all_problems_are_reported_in_one_message_with_key_value_and_expectation(tmp_path):
    message = problems(
        tmp_path,
        ("rank: 2", "rnak: 2, rank: 0, alpha: true"),
        ("seed: 3", "seed: -1\ncolour: red"),
        ("{kind: tbi, n_cases: 2}", "{kind: xyz, n_cases: 2.5}"),
        ("pretrain: {sites: [graz], rounds: 1, ", "pretrain: {sites: [graz], "),
    )
    lines = message.splitlines()
    assert lines[0] == f"{tmp_path / 'study.yaml'}: 8 problems"
    assert set(lines[1:]) == {
        "  line 3, seed: expected at least 0, got -1",
        "  line 4, colour: is not a setting; its section has " + ", ".join(Study.model_fields),
        "  line 10, data.sites.graz.kind: expected 'tbi', 'sah' or 'normal', got 'xyz'",
        "  line 10, data.sites.graz.n_cases: expected a whole number, got 2.5",
        "  line 13, pretrain.rounds: is missing (Rounds of training and averaging)",
        "  line 20, finetune.methods.1.rank: expected at least 1, got 0",
        "  line 20, finetune.methods.1.alpha: expected a number, got true",
        "  line 20, finetune.methods.1.rnak: is not a setting; did you mean rank?",
    }


def test_a_wrong_study_file_ends_with_the_exit_code_of_a_user_error(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_study(study_file(tmp_path, "name: 3"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "method: zero_shot",
            "method: cp_lora, rank: 2",
            "finetune: methods must be distinct, got twice: cp_lora-r2",
        ),
        ("sites: [bern, linz]", "sites: [bern, graz]", "\n  a site has one role, got twice: graz"),
        ("sites: [bern, linz]", "sites: [bern, bern]", "\n  a site has one role, got twice: bern"),
        (
            "sites: [bern, linz]",
            "sites: [bern, oslo]",
            r"line \d+, finetune.sites.1: unknown site oslo; data.sites has bern, graz, linz",
        ),
        ("sites: [bern, linz]", "sites: []", "finetune.sites: expected at least 1 entry"),
        ("name: small", "name: ../up", "name: expected 1 to 40 lower-case letters.*, got '../up'"),
        ("name: small", 'name: "small\\n"', r"name: expected 1 to 40 lower-case letters.*, got 'small\\n'"),
        ("graz: {", "Graz: {", "line 9, data.sites.Graz: expected 1 to 40 lower-case letters, .*, got 'Graz'"),
        ("seed: 3", "seed: '3'", "line 3, seed: expected a whole number, got '3'"),
        ("seed: 3", "views: {size: [100, 96, 96]}", r"views.size.0: .*multiple of 16 \(four halvings.*got 100"),
        ("seed: 3", "views: {windows_hu: [[80, 0]]}", "views: .*windows_hu must be pairs .* with low < high"),
        ("seed: 3", "views: {windows_hu: []}", "views: .*windows_hu must be pairs"),
        ("seed: 3", "views: {windows_hu: [[.nan, 80]]}", "windows_hu.0.0: expected a finite number, got .nan"),
        ("seed: 3", "views: {weights: {}}", "views.weights: expected at least 1 entry"),
        (
            "seed: 3",
            "views: {weights: {oblique: 1.0}}",
            "views.weights.oblique: expected 'axial', 'coronal' or 'sagittal', got 'oblique'",
        ),
        ("seed: 3", "evaluation: {volume_edges_ml: [30.0, 10.0]}", "evaluation: .*volume_edges_ml must increase"),
        ("seed: 3", "rounds: {deadline_s: .inf}", "rounds.deadline_s: expected a finite number, got .inf"),
        ("source: phantom", "source: csv", "data.source: expected 'phantom', 'datalist', .*, got 'csv'"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, old, new, message):
    text = problems(tmp_path, (old, new))
    assert "study.yaml: 1 problem\n" in text
    assert re.search(message, text)


def test_ranks_of_unknown_sites_are_named_in_one_message_with_every_other_problem(tmp_path):
    ranked = "method: %s, rank: 2, aggregation: project, site_ranks: {%s}"
    message = problems(
        tmp_path,
        ("method: zero_shot", ranked % ("lora_c", "graz: 2, bern: 1, oslo: 4")),
        ("method: cp_lora, rank: 2", ranked % ("cp_lora", "rome: 1")),
        ("seed: 3", "seed: -1"),
    )
    assert "study.yaml: 3 problems\n" in message
    assert "\n  line 3, seed: expected at least 0, got -1" in message
    for line, number, text in ((18, 0, "lora_c-r2-project names graz, oslo"), (19, 1, "cp_lora-r2-project names rome")):
        found = f"\n  line {line}, finetune.methods.{number}: site_ranks of {text}; finetune.sites has bern, linz"
        assert found in message


def test_ranks_of_sites_without_a_rule_for_them_are_refused_by_their_method(tmp_path):
    message = problems(tmp_path, ("cp_lora, rank: 2", "cp_lora, rank: 2, site_ranks: {bern: 1}"))
    assert re.search(r"finetune.methods.1: site_ranks needs aggregation: project, mean needs", message)


UNREADABLE = {
    "unclosed": ("name: [", "study.yaml, line 1: is not YAML: "),
    "tab": ("name: a\n\tb: c", "study.yaml, line 2: is not YAML: "),
    "control-character": ("name: \0", "study.yaml: is not YAML: .*special characters are not allowed"),
    "python-object": ("name: !!python/object/apply:os.getcwd []", "line 1: is not YAML: could not determine a constr"),
    "list": ("- a", "study.yaml: got list, expected a mapping of settings"),
    "empty": ("", "study.yaml: is empty, expected a mapping of settings"),
    "date-as-key": ("2020-01-01: a", "line 1, 2020-01-01: is not a setting"),
    "contains-itself": ("a: &a {b: *a}", r"study.yaml, line 1: got the alias \*a"),
    "deep": ("[" * 5000, "study.yaml, line 1: got more than 32 levels"),
}


@pytest.mark.parametrize(("text", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_file_that_is_no_settings_file_is_refused_naming_it(tmp_path, text, message):
    path = study_file(tmp_path, text)
    with pytest.raises(ConfigError, match="(?s)" + message):
        load_study(path)


def test_a_missing_file_is_named_with_the_systems_reason(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read \(No such file or directory\)"):
        load_study(tmp_path / "no.yaml")


def test_a_binary_file_is_not_a_text_file(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"\xff\xfe\x00\x9f")
    with pytest.raises(ConfigError, match=r"study\.yaml: cannot be read \(not a text file\)"):
        load_study(tmp_path / "study.yaml")


# --- where the data lie ---------------------------------------------------------------------------------------------


def test_a_relative_datalist_lies_beside_the_study_file(tmp_path, monkeypatch):
    (tmp_path / "studies").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    study = load_study(study_file(tmp_path / "studies", FROM_DISK % "scans/list.json"))
    assert isinstance(study.data, StudyScansDatalist)
    assert study.data.path == tmp_path / "studies" / "scans" / "list.json"


def test_an_absolute_datalist_stays_where_it_is(tmp_path):
    assert load_study(study_file(tmp_path, FROM_DISK % "/scans/list.json")).data.path == Path("/scans/list.json")


def test_the_datalist_option_takes_the_place_of_the_files_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load_study(study_file(tmp_path, FROM_DISK % "here.json"), datalist=Path("scans/there.json"))
    assert study.data.path == tmp_path / "scans" / "there.json"


@pytest.mark.parametrize("text", [STUDY, "name: small", "data: 3"], ids=["phantom", "no-data", "wrong-data"])
def test_the_datalist_option_needs_a_study_of_scans_on_disk(tmp_path, text):
    with pytest.raises(
        ConfigError, match=r"study\.yaml: a datalist was named; it needs a study whose data.source is 'datalist'"
    ):
        load_study(study_file(tmp_path, text), datalist=Path("x.json"))


def test_an_unknown_hostile_site_and_an_unknown_act_are_reported_with_the_other_problems(tmp_path):
    extra = "seed: -1\nhostile: {oslo: nan, basel: sign_flip}\n"
    message = problems(tmp_path, ("seed: 3\n", extra))
    assert "2 problems" in message
    assert "hostile: unknown site(s) basel, oslo; the study's are bern, graz, linz" in message
    assert "seed: expected at least 0, got -1" in message
    message = problems(tmp_path, ("seed: 3\n", "seed: 3\nhostile: {bern: bribe}\n"))
    assert re.search("hostile.bern: expected 'nan', 'times_1000'.* or 'noisy_free_rider', got 'bribe'", message)


def test_a_study_with_hostile_sites_is_another_study(tmp_path):
    honest = load_study(study_file(tmp_path))
    hostile = load_study(study_file(tmp_path, STUDY + "hostile: {bern: free_rider}\n"))
    assert (honest.hostile, hostile.hostile) == ({}, {"bern": "free_rider"})
    assert hostile.fingerprint() != honest.fingerprint()
    assert load_study(study_file(tmp_path, STUDY + "hostile: {}\n")).fingerprint() == honest.fingerprint()


# --- fingerprint ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rank: 2", "rank: 2, learning_rate: 0.004"),
        ("rounds: 1, local", "rounds: 1, learning_rate: 0.001, local"),
        ("seed: 3", "seed: 4"),
        ("n_cases: 2", "n_cases: 1"),
        ("seed: 3", "seed: 3\nevaluation: {threshold: 0.4}"),
    ],
)
def test_the_fingerprint_changes_with_a_setting(tmp_path, old, new):
    before = load_study(study_file(tmp_path)).fingerprint()
    assert STUDY.count(old) == 1
    assert load_study(study_file(tmp_path, STUDY.replace(old, new))).fingerprint() != before


def test_the_fingerprint_is_a_sha256_that_does_not_depend_on_how_the_file_is_written(tmp_path):
    one = load_study(study_file(tmp_path))
    rewritten = yaml.safe_dump(yaml.safe_load(STUDY), sort_keys=True)
    other = load_study(study_file(tmp_path, rewritten + "\nviews: {neighbours: 1}"))
    assert rewritten.strip() != STUDY.strip()
    assert one.fingerprint() == other.fingerprint()
    assert len(bytes.fromhex(one.fingerprint())) == 32


def test_the_fingerprint_does_not_depend_on_where_the_data_lie(tmp_path):
    here, there = (load_study(study_file(tmp_path, FROM_DISK % name)) for name in ("here.json", "there.json"))
    assert here.data != there.data
    assert here.fingerprint() == there.fingerprint()


def test_a_study_survives_the_way_through_json_unchanged(tmp_path):
    study = load_study(study_file(tmp_path))
    again = Study.model_validate_json(study.model_dump_json())
    assert again == study
    assert again.fingerprint() == study.fingerprint()


def test_a_simulation_shares_batches_unless_the_study_file_excludes_it(tmp_path):
    usual = load_study(study_file(tmp_path))
    shared = load_study(study_file(tmp_path, STUDY + "common_random_numbers: true\n"))
    own = load_study(study_file(tmp_path, STUDY + "common_random_numbers: false\n"))
    assert [study.shares_batches for study in (usual, shared, own)] == [True, True, False]
    assert usual.fingerprint() == shared.fingerprint() != own.fingerprint()


def test_hospitals_never_share_batches(tmp_path):
    text = STUDY[: STUDY.index("data:")] + "data: {source: sites}\n" + STUDY[STUDY.index("pretrain:") :]
    text += "rounds: {unmasked: true}\n"
    usual, own = (load_study(study_file(tmp_path, text + more)) for more in ("", "common_random_numbers: false\n"))
    assert (usual.shares_batches, own.shares_batches) == (False, False)
    assert usual.fingerprint() == own.fingerprint()
    with pytest.raises(ConfigError, match=r"common_random_numbers: true with data\.source: sites; methods"):
        load_study(study_file(tmp_path, text + "common_random_numbers: true\n"))


def test_a_key_given_twice_is_an_error_not_the_last_one_s_win(tmp_path):
    path = study_file(tmp_path, STUDY + "\nseed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"study.yaml, line \d+: is not YAML: key 'seed' is given twice"):
        load_study(path)


def test_a_study_may_leave_it_to_the_sites_where_their_scans_lie_but_is_then_not_simulated(tmp_path):
    study = parse(Study, changed(TINY, data={"source": "sites"}, rounds__unmasked=True), where="test")
    assert study.sites == ("tbi_a", "tbi_b", "sah_a", "sah_b", "sah_c")
    with pytest.raises(ConfigError, match=r"data\.source is 'sites'.*run it with sahfl-server"):
        site_configs(study, tmp_path)
