"""Lists of cases as people and programs write them: encodings, MONAI's forms, and messages with line and column."""

import json

import pytest
from test_nnunet import raw_folder

from sahfl.data.json_lists import place_in_json
from sahfl.data.manifest import read_datalist
from sahfl.data.nnunet import read_nnunet
from sahfl.data.sources.folders import recognise
from sahfl.errors import DataError

TEXT = """{
  "name": "Zürich, [\\"x\\": 1]",
  "sites": {
    "bern": [
      {"image": "a.nii", "label": "b.nii", "patient": "Müller"},
      {"image": "c.nii", "label": "d.nii",
       "patient": %s, "fold": %s}
    ]
  }
}
"""


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_a_datalist_is_read_in_the_encodings_of_editors(tmp_path, encoding, newline):
    path = written(tmp_path / "list.json", (TEXT % ('"p"', 1)).replace("\n", newline), encoding)
    assert [case.patient for case in read_datalist(path, "bern")] == ["Müller", "p"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_datalist_is_known_by_its_content(tmp_path, encoding):
    path = written(tmp_path / "cases.txt", "\n " + TEXT % ('"p"', 1), encoding)
    assert recognise(path, "bern") == "datalist"
    (tmp_path / "notes.txt").write_text("the cases are elsewhere")
    with pytest.raises(DataError, match="got a file, expected a datalist"):
        recognise(tmp_path / "notes.txt", "bern")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_another_encoding_is_refused_with_its_line_and_a_remedy_that_works(tmp_path, encoding):
    path = written(tmp_path / "list.json", TEXT % ('"p"', 1), encoding)
    text = r"byte 14 is not UTF-8 \(line 2, 0xfc\); the text looks like Latin-1 or Windows-1252, save it as UTF-8"
    with pytest.raises(DataError, match=text):
        read_datalist(path, "bern")
    assert len(read_datalist(written(path, path.read_bytes().decode(encoding)), "bern")) == 2


WRONG = {
    "patient": ((7, 1), r"case 1: expected text under patient \(line 6, column 7\)$"),
    "fold": (('"p"', '"1"'), r"case 1: fold must be a whole number, got '1' \(line 7, column 32\)$"),
}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("values", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_entry_is_named_with_its_line_and_column(tmp_path, values, message, encoding):
    with pytest.raises(DataError, match=message):
        read_datalist(written(tmp_path / "list.json", TEXT % values, encoding), "bern")


def test_a_missing_comma_is_named_with_its_line_and_column(tmp_path):
    path = written(tmp_path / "list.json", (TEXT % ('"p"', 1)).replace('"a.nii",', '"a.nii"'))
    with pytest.raises(DataError, match=r"is not JSON \(Expecting ',' delimiter: line 5 column 25"):
        read_datalist(path, "bern")


def test_an_nnunet_folder_s_lists_are_read_in_the_same_encodings(tmp_path):
    folder = raw_folder(tmp_path / "raw")
    path = folder / "dataset.json"
    written(path, path.read_text(), "utf-16")
    assert len(read_nnunet(folder, "bern")) == 4


PLACES = {
    "root": ((), (1, 1)),
    "key": (("b",), (2, 8)),
    "second": (("b", 1), (2, 13)),
    "within": (("b", 1, "c"), (2, 19)),
    "last": (("d",), (3, 7)),
    "no-key": (("x",), None),
    "no-index": (("b", 2), None),
    "a-list-is-no-mapping": (("b", "c"), None),
    "a-number-is-no-list": (("d", 0), None),
}


@pytest.mark.parametrize(("keys", "place"), PLACES.values(), ids=PLACES.keys())
def test_a_value_s_place_is_its_line_and_column(tmp_path, keys, place):
    path = written(tmp_path / "a.json", '{"a": "}]{[",\n  "b": [10, {"c": -1.5e3}],\n"d":  null}')
    assert place_in_json(path, *keys) == ("" if place is None else f" (line {place[0]}, column {place[1]})")


def test_the_place_in_a_file_that_is_gone_is_left_out(tmp_path):
    assert place_in_json(tmp_path / "no.json", "a") == ""


# --- MONAI ----------------------------------------------------------------------------------------------------------


def monai(folder, **content):
    return written(folder / "list.json", json.dumps(content))


def test_lists_of_one_file_and_validation_cases_are_taken(tmp_path):
    path = monai(
        tmp_path,
        training=[{"image": ["a.nii"], "label": ["b.nii"]}, {"image": "c.nii", "label": "d.nii", "patient": "p"}],
        validation=[{"image": ["sub-3_ses-1.nii"], "label": "e.nii"}],
        testing=["f.nii"],
    )
    cases = read_datalist(path, "bern")
    assert [(case.id, case.image.name, case.label.name, case.patient) for case in cases] == [
        ("bern-0000", "a.nii", "b.nii", "a"),
        ("bern-0001", "c.nii", "d.nii", "p"),
        ("bern-0002", "sub-3_ses-1.nii", "e.nii", "sub-3"),
    ]


def test_an_empty_list_of_validation_is_no_mistake_and_an_empty_list_of_training_is(tmp_path):
    entry = {"image": "a.nii", "label": "b.nii"}
    assert len(read_datalist(monai(tmp_path, training=[entry], validation=[]), "bern")) == 1
    with pytest.raises(DataError, match="expected a list with at least one case"):
        read_datalist(monai(tmp_path, training=[], validation=[entry]), "bern")


def test_a_wrong_validation_case_is_named_with_its_place(tmp_path):
    path = monai(tmp_path, training=[{"image": "a.nii", "label": "b.nii"}], validation=[{"image": ["a", "b"]}])
    with pytest.raises(DataError, match=r"case 1: expected text under image, label, patient \(line 1, column 69\)"):
        read_datalist(path, "bern")
