"""Lists of scans that somebody else wrote: whatever lies in their place or in them, the end is one clear error."""

import json
import os

import pytest
import yaml
from harness.tiny_study import TINY, changed

from sahfl.config import load_site
from sahfl.data.manifest import datalist_sites, read_datalist
from sahfl.data.nnunet import read_nnunet
from sahfl.data.sources.recognised import recognise
from sahfl.errors import DataError, SahflError
from sahfl.regular_files import DATALIST_BYTES

ENTRY = {"image": "a.nii.gz", "label": "b.nii.gz", "patient": "p1"}
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "sah": 1}, "numTraining": 1}
DATASET |= {"file_ending": ".nii.gz"}
WHOLE = {
    "dataset.json": DATASET,
    "splits_final.json": [{"train": [], "val": ["x"]}],
    "patients.json": {"x": "p1"},
}


def huge(path):
    with path.open("wb") as stream:
        stream.truncate(2**41)


PLACES = {
    "pipe": (os.mkfifo, "is a pipe, expected a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a regular file"),
    "loop": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "folder": (lambda path: path.mkdir(), "Is a directory"),
    "huge": (huge, f"has {2**41} bytes, expected at most {DATALIST_BYTES}"),
}
TEXTS = {
    "deep": (b"[" * 1_000_000, "nested too deeply"),
    "deep-mapping": (b'{"sites":' * 1_000_000, "nested too deeply"),
    "deep-and-closed": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "nan": (b'{"sites": {"bern": [{"fold": NaN}]}}', "NaN is no number of JSON"),
    "infinity": (b"[1, -Infinity]", "-Infinity is no number of JSON"),
    "latin-1": ('{"sites": {"Zürich": []}}'.encode("latin-1"), "byte 13 is not UTF-8"),
    "utf-16-cut": ('{"sites": {}}'.encode("utf-16")[:-1], "is not JSON"),
    "utf-16-without-mark": ('{"sites": {}}'.encode("utf-16-le"), "it has bytes of zero, as UTF-16"),
    "utf-32": ('{"sites": {}}'.encode("utf-32-be"), "it has bytes of zero, as UTF-16 and UTF-32 without a mark do"),
    "binary": (bytes(range(256)), "is not JSON"),
    "empty": (b"", "is not JSON"),
    "long-number": (b"[" + b"1" * 5000 + b"]", "is not JSON"),
    "twice": (b'{"sites": {"bern": [], "graz": [], "bern": [1]}}', "key 'bern' is given twice"),
    "twice-within": (b'{"sites": {"bern": [{"patient": "a", "patient": "b"}]}}', "key 'patient' is given twice"),
    "twice-and-long": (b'{"' + b"k" * 10_000 + b'": 1, "' + b"k" * 10_000 + b'": 2}', "is given twice"),
}
HOSTILE = {name: (make, text) for name, (make, text) in PLACES.items()}
HOSTILE |= {name: (lambda path, content=content: path.write_bytes(content), text)
            for name, (content, text) in TEXTS.items()}  # fmt: skip
each = pytest.mark.parametrize(("make", "text"), HOSTILE.values(), ids=HOSTILE.keys())


def refused(read, path, text):
    with pytest.raises(DataError) as caught:
        read()
    said = str(caught.value)
    assert str(path) in said
    assert text in said
    assert len(said) < 1000
    assert "\n" not in said


@each
@pytest.mark.parametrize("read", [lambda path: read_datalist(path, "bern"), datalist_sites], ids=["cases", "sites"])
def test_a_datalist(tmp_path, make, text, read):
    make(tmp_path / "list.json")
    refused(lambda: read(tmp_path / "list.json"), tmp_path / "list.json", text)


@each
@pytest.mark.parametrize("name", WHOLE)
def test_a_list_of_an_nnunet_folder(tmp_path, make, text, name):
    for part, file in (("imagesTr", "x_0000.nii.gz"), ("labelsTr", "x.nii.gz")):
        (tmp_path / part).mkdir()
        (tmp_path / part / file).touch()
    for other, content in WHOLE.items():
        (tmp_path / other).write_text(json.dumps(content))
    assert len(read_nnunet(tmp_path, "bern")) == 1
    (tmp_path / name).unlink()
    make(tmp_path / name)
    refused(lambda: read_nnunet(tmp_path, "bern"), tmp_path / name, text)


@pytest.mark.parametrize("make", [make for make, _ in PLACES.values()], ids=PLACES.keys())
def test_a_site_s_path(sahfl, tmp_path, make):
    make(tmp_path / "list.json")
    with pytest.raises(DataError):
        recognise(tmp_path / "list.json", "bern")
    path = tmp_path / "site.yaml"
    path.write_text("name: bern\nfolder: work\ndata:\n  source: folder\n  path: list.json\n")
    assert load_site(path).data.path is not None
    code, out, err = sahfl("check", path)
    assert (code, out) == (2, "")
    assert f"{path}, line 5, data.path: " in err


@pytest.mark.parametrize("make", [make for make, _ in PLACES.values()], ids=PLACES.keys())
def test_a_study_s_datalist(sahfl, tmp_path, make):
    make(tmp_path / "list.json")
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(changed(TINY, data={"source": "datalist", "path": "list.json"})))
    for arguments in ((path,), (path, "--datalist", tmp_path / "list.json")):
        code, out, err = sahfl("check", *arguments)
        assert (code, out) == (2, "")
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert any(str(path) in line for path in (tmp_path / "list.json", "/dev/zero"))


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


LONG = {
    "many-sites": {"sites": {f"site{i}": [] for i in range(100_000)}},
    "long-site": {"sites": {"s" * 1_000_000: []}},
    "deep-fold": {"sites": {"bern": [ENTRY | {"fold": deep(500)}]}},
    "long-fold": {"sites": {"bern": [ENTRY | {"fold": "1" * 1_000_000}]}},
}


@pytest.mark.parametrize("content", LONG.values(), ids=LONG.keys())
def test_a_message_about_a_datalist_stays_short(tmp_path, content):
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_datalist(tmp_path / "list.json", "bern")
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


LONG_DATASETS = {
    "deep-labels": {"dataset.json": DATASET | {"labels": {"background": 0, "blood": deep(500)}}},
    "many-labels": {"dataset.json": DATASET | {"labels": {"background": 0} | {f"x{i}": 1 for i in range(50_000)}}},
    "long-label": {"dataset.json": DATASET | {"labels": {"background": 0, "x" * 1_000_000: 1}}},
    "deep-channels": {"dataset.json": DATASET | {"channel_names": {"0": deep(500)}}},
    "long-number": {"dataset.json": DATASET | {"numTraining": deep(500)}},
    "deep-split": {"splits_final.json": [{"train": [], "val": [deep(500)]}]},
    "many-splits": {"splits_final.json": [{}] * 100_000},
    "path-in-split": {"splits_final.json": [{"train": [], "val": ["../../x", "/etc/passwd"]}]},
    "number-in-split": {"splits_final.json": [{"train": [], "val": [1]}]},
    "number-as-patient": {"patients.json": {"x": 7}},
    "path-in-patients": {"patients.json": {"../x": "p"}},
}


@pytest.mark.parametrize("changes", LONG_DATASETS.values(), ids=LONG_DATASETS.keys())
def test_a_message_about_an_nnunet_folder_stays_short(tmp_path, changes):
    for part, file in (("imagesTr", "x_0000.nii.gz"), ("labelsTr", "x.nii.gz")):
        (tmp_path / part).mkdir()
        (tmp_path / part / file).touch()
    for name, content in (WHOLE | changes).items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(SahflError) as caught:
        read_nnunet(tmp_path, "bern")
    assert len(str(caught.value)) < 5000
