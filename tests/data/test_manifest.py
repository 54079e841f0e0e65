import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sahfl.data.manifest import Case, assign_folds, datalist_sites, declared_folds, pseudonym, read_datalist
from sahfl.errors import DataError

ENTRY = {"image": "a.nii.gz", "label": "b.nii.gz", "patient": "p1"}


def datalist(folder, content):
    path = folder / "list.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_cases_of_a_site_are_read_in_order_with_files_relative_to_the_list(tmp_path):
    second = {"image": "x/c.nii", "label": "/data/d.nii", "patient": "p2", "fold": 1, "note": "ignored"}
    path = datalist(tmp_path, {"sites": {"bern": [ENTRY, second], "graz": [ENTRY]}})
    assert read_datalist(path, "bern") == (
        Case("bern-0000", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", "p1", None),
        Case("bern-0001", tmp_path / "x" / "c.nii", Path("/data/d.nii"), "p2", 1),
    )
    assert datalist_sites(path) == ("bern", "graz")


WRONG = {
    "no-json": ("{", "list.json: is not JSON"),
    "binary": ("\udcff", "list.json: is not JSON"),
    "list": ([], r"has no site 'bern' \(it has: no 'sites' mapping\)"),
    "sites-is-a-list": ({"sites": ["bern"]}, r"has no site 'bern' \(it has: no 'sites' mapping\)"),
    "other-site": ({"sites": {"linz": [], "graz": []}}, r"has no site 'bern' \(it has: graz, linz\)"),
    "no-cases": ({"sites": {"bern": []}}, "site 'bern': expected a list with at least one case"),
    "mapping": ({"sites": {"bern": {"a": 1}}}, "site 'bern': expected a list with at least one case"),
    "text": ({"sites": {"bern": [ENTRY, "x"]}}, "site 'bern', case 1: got str, expected a mapping with image, label"),
    "blank": (
        {"sites": {"bern": [ENTRY | {"image": "", "patient": " "}]}},
        r"case 0: expected text under image, patient \(line 1, column \d+\)$",
    ),
    "nul": (
        {"sites": {"bern": [ENTRY | {"image": "a\0.nii"}]}},
        r"case 0: expected text under image \(line 1, column \d+\)$",
    ),
    "surrogate": (
        {"sites": {"bern": [ENTRY | {"label": "a\udcff.nii"}]}},
        r"case 0: expected text under label \(line 1, column \d+\)$",
    ),
    "no-keys": (
        {"sites": {"bern": [{"label": "b"}]}},
        r"case 0: expected text under image, patient \(line 1, column \d+\)$",
    ),
    "number": (
        {"sites": {"bern": [ENTRY, ENTRY | {"patient": 7}]}},
        r"case 1: expected text under patient \(line 1, column \d+\)$",
    ),
    "text-fold": ({"sites": {"bern": [ENTRY | {"fold": "1"}]}}, "case 0: fold must be a whole number, got '1'"),
    "true-fold": ({"sites": {"bern": [ENTRY | {"fold": True}]}}, "case 0: fold must be a whole number, got true"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_datalist_is_refused_naming_the_entry(tmp_path, content, message):
    path = tmp_path / "list.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        read_datalist(path, "bern")


@pytest.mark.parametrize("read", [lambda path: read_datalist(path, "bern"), datalist_sites])
def test_a_missing_datalist_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"datalist .*no\.json: No such file or directory"):
        read(tmp_path / "no.json")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"sites": ["bern"]}', '{"sites": "bern"}', '{"sites": 3}'])
def test_sites_are_listed_from_a_mapping_only(tmp_path, content):
    with pytest.raises(DataError, match=r"list\.json: expected JSON with a 'sites' mapping"):
        datalist_sites(datalist(tmp_path, content))


def test_a_pseudonym_tells_nothing_and_differs_between_studies():
    assert pseudonym("p1", "a") == pseudonym("p1", "a")
    assert len({pseudonym("p1", "a"), pseudonym("p1", "b"), pseudonym("p2", "a")}) == 3
    assert len(bytes.fromhex(pseudonym("Hans Muster", "a"))) == 8


# --- folds ----------------------------------------------------------------------------------------------------------

VOLUMES = st.sampled_from([0.0, 5.0]) | st.floats(0, 200)
COHORTS = st.dictionaries(st.text(min_size=1, max_size=6), VOLUMES, min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(COHORTS, st.integers(2, 6), st.randoms(use_true_random=False))
def test_every_patient_has_one_fold_sizes_are_even_and_order_does_not_matter(volumes, n_folds, random):
    folds = assign_folds(volumes, n_folds=n_folds, salt="study")
    assert folds.keys() == volumes.keys()
    sizes = Counter(folds.values())
    assert set(sizes) <= set(range(n_folds))
    assert max(sizes.values()) - min(sizes[fold] for fold in range(n_folds)) <= 1
    shuffled = dict(random.sample(list(volumes.items()), len(volumes)))
    assert assign_folds(shuffled, n_folds=n_folds, salt="study") == folds


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 200), min_size=5, max_size=30, unique=True), st.integers(2, 5))
def test_each_fold_has_one_of_each_block_of_similar_volumes(volumes, n_folds):
    volumes = {f"p{i}": volume for i, volume in enumerate(volumes)}
    folds = assign_folds(volumes, n_folds=n_folds, salt="study")
    by_volume = sorted(volumes, key=volumes.get)
    for start in range(0, len(by_volume) - n_folds + 1, n_folds):
        assert {folds[patient] for patient in by_volume[start : start + n_folds]} == set(range(n_folds))


def test_another_study_has_other_folds():
    volumes = {f"p{i}": float(i) for i in range(12)}
    assert len({tuple(assign_folds(volumes, n_folds=3, salt=salt).items()) for salt in "abcde"}) == 5


def test_the_odd_patients_do_not_always_make_the_first_fold_the_largest():
    largest = {
        Counter(assign_folds({f"p{i}": float(i) for i in range(4)}, n_folds=3, salt=str(salt)).values()).most_common()[
            0
        ][0]
        for salt in range(20)
    }
    assert largest == {0, 1, 2}


def test_patients_of_equal_volume_are_dealt_evenly_too():
    folds = assign_folds({f"p{i}": 0.0 for i in range(9)}, n_folds=3, salt="study")
    assert Counter(folds.values()) == {0: 3, 1: 3, 2: 3}


def case(index, patient, fold):
    return Case(f"bern-{index:04d}", Path("a"), Path("b"), patient, fold)


def test_folds_that_the_datalist_names_are_used():
    cases = [case(0, "p1", 2), case(1, "p2", 0), case(2, "p1", 2)]
    assert declared_folds(iter(cases), n_folds=3) == {"p1": 2, "p2": 0}


def test_a_datalist_without_folds_declares_none():
    assert declared_folds([case(0, "p1", None), case(1, "p2", None)], n_folds=3) is None


@pytest.mark.parametrize(
    ("folds", "patients", "message"),
    [
        ((0, None), ("p1", "p2"), "case bern-0001: got fold None, expected 0 to 2 for every case or none"),
        ((0, 3), ("p1", "p2"), "case bern-0001: got fold 3, expected 0 to 2 for every case or none"),
        ((-1, 0), ("p1", "p2"), "case bern-0000: got fold -1, expected 0 to 2"),
        ((0, 1), ("p1", "p1"), "case bern-0001: its patient is also in fold 0, expected one fold"),
    ],
)
def test_folds_that_do_not_work_are_refused_naming_the_case(folds, patients, message):
    cases = [case(i, patient, fold) for i, (patient, fold) in enumerate(zip(patients, folds, strict=True))]
    with pytest.raises(DataError, match=message):
        declared_folds(cases, n_folds=3)
