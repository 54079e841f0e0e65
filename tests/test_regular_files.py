"""Only regular files of bounded size are opened, and nothing that is opened stops a program."""

import ast
import json
import os
import socket
import threading
from pathlib import Path

import pytest
from harness.import_graph import FILES, ROOT

from sahfl import regular_files
from sahfl.errors import SahflError, UnfitFile
from sahfl.regular_files import check_regular, open_regular, open_to_append, read_bytes, read_json, read_text


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def listening(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def loop(path):
    path.symlink_to(path)


UNFIT = {
    "pipe": (pipe, "is a pipe, expected a regular file"),
    "device": (device, "is a device, expected a regular file"),
    "socket": (listening, "is a socket or a device, expected a regular file"),
    "folder": (lambda path: path.mkdir(), "Is a directory"),
    "loop": (loop, "Too many levels of symbolic links"),
    "large": (lambda path: path.write_bytes(bytes(11)), "has 11 bytes, expected at most 10"),
    "missing": (lambda path: None, "No such file or directory"),
}


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json, check_regular, open_regular])
@pytest.mark.parametrize(("make", "reason"), UNFIT.values(), ids=UNFIT.keys())
def test_what_is_no_regular_file_of_that_size_is_refused_at_once(tmp_path, make, reason, read):
    make(tmp_path / "file")
    with pytest.raises(OSError, match=reason) as caught:
        read(tmp_path / "file", most=10)
    assert caught.value.strerror == reason
    assert caught.value.filename == str(tmp_path / "file") or caught.value.filename == tmp_path / "file"


def test_the_error_is_one_of_sahfl_and_names_the_file(tmp_path):
    pipe(tmp_path / "file")
    with pytest.raises(SahflError) as caught:
        read_bytes(tmp_path / "file", most=10)
    assert str(caught.value) == f"{tmp_path / 'file'}: is a pipe, expected a regular file"


@pytest.mark.parametrize(("make", "reason"), [UNFIT["pipe"], UNFIT["device"], UNFIT["socket"]])
def test_nothing_is_appended_to_what_is_no_regular_file(tmp_path, make, reason):
    make(tmp_path / "file")
    with pytest.raises(UnfitFile, match=reason):
        open_to_append(tmp_path / "file")


def test_a_file_that_grows_while_it_is_read_is_read_to_its_limit(tmp_path):
    path, end = tmp_path / "file", threading.Event()
    path.write_bytes(bytes(1000))

    def grow():
        with path.open("ab", buffering=0) as stream:
            while not end.is_set():
                stream.write(bytes(100_000))

    def read_for_ever():
        while True:
            assert len(read_bytes(path, most=1_000_000)) <= 1_000_000

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with pytest.raises(UnfitFile, match=r"expected at most 1000000|grew beyond 1000000 bytes"):
            read_for_ever()
    finally:
        end.set()
        writer.join()


def test_a_file_of_the_kernel_is_read_although_its_size_is_0():
    assert "MemTotal" in read_text(Path("/proc/meminfo"), most=100_000)


def test_a_file_at_its_limit_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"1234567890")
    assert read_bytes(tmp_path / "file", most=10) == b"1234567890"
    assert read_json(tmp_path / "file", most=10) == 1234567890


def test_text_has_line_feeds_whatever_system_wrote_it(tmp_path):
    (tmp_path / "file").write_bytes("ä\r\nb\rc\n".encode())
    assert read_text(tmp_path / "file", most=100) == "ä\nb\nc\n"


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\ufeff", "1" * 5000], ids=["deep", "cut", "empty", "long"])
def test_what_is_no_json_is_a_value_error(tmp_path, text):
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError):  # noqa: PT011  # the reason is that of the parser
        read_json(tmp_path / "file", most=1_000_000)


@pytest.mark.parametrize(
    "text",
    [
        "[" + "[]," * 1000 + "[]]",
        '{"a":[' + "{}," * 1000 + "{}]}",
        json.dumps({str(n): n for n in range(1001)}),
        "[" + "1," * 2001 + "1]",
    ],
    ids=["lists", "mappings", "keys", "numbers"],
)
def test_the_values_of_json_are_counted_before_they_are_made(tmp_path, monkeypatch, text):
    (tmp_path / "a").write_text(text)
    assert read_json(tmp_path / "a", most=20_000)
    monkeypatch.setattr(regular_files, "JSON_PARTS", 1000)
    monkeypatch.setattr(regular_files, "JSON_VALUES", 2000)
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(ValueError, match="has more than 1000 lists, mappings and keys, or more than 2000 values"):
        read_json(tmp_path / "a", most=20_000)


def test_a_byte_order_mark_before_json_is_no_part_of_it(tmp_path):
    (tmp_path / "file").write_text("\ufeff[1]")
    assert read_json(tmp_path / "file", most=100) == [1]


# --- every opening goes through this module ----------------------------------------------------------------------

OPENING = {
    *("open", "os.open", "io.open", "gzip.open", "json.load", "np.load", "np.fromfile", "load_file", "safe_open"),
    *("torch.load", "nibabel.load", "pydicom.dcmread", "Image.open", "yaml.safe_load"),
}
METHODS = {"read_text", "read_bytes", "from_filename"}
EXCEPTIONS = {
    ("sahfl/regular_files.py", "os.open"): "this is the opening",
    ("sahfl/atomic.py", "os.open"): "writes a new file beside the old one, and flushes a folder",
    ("sahfl/process.py", "os.open"): "opens a file or folder to lock it, and reads nothing",
    ("sahfl/export/alone.py", "read_text"): "a script that is a part of this package",
    ("sahfl/export/scripts/head_ct.py", "nibabel.load"): "a script of an export, which runs where sahfl is absent",
    ("sahfl/export/scripts/predict_bundle.py", "read_text"): "a script of an export",
    ("sahfl/export/scripts/predict_bundle.py", "load_file"): "a script of an export",
    ("sahfl/export/scripts/predict_onnx.py", "read_text"): "a script of an export",
    ("sahfl/data/dicom/header.py", "pydicom.dcmread"): "pydicom opens by path; the file was checked before",
}


def openings(path):
    """The calls in a file that open a file, by their names; ``.open(...)`` of a path counts as ``open``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if name in OPENING or (last in METHODS and not name.startswith("regular_files.") and "." in name):
            yield name if name in OPENING else last
        elif last == "open" and "." in name and all(isinstance(given, ast.Constant) for given in node.args):
            yield "open"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_opened_by_one_module(path):
    name = str(path.relative_to(ROOT))
    assert [found for found in openings(path) if (name, found) not in EXCEPTIONS] == []


def test_each_exception_is_needed():
    needed = {(str(path.relative_to(ROOT)), found) for path in FILES for found in openings(path)}
    assert EXCEPTIONS.keys() - needed == set()


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_a_path_that_no_file_can_have_is_refused_as_an_unreadable_file(tmp_path, name):
    with pytest.raises(UnfitFile, match="is no path that a file can have"):
        read_bytes(tmp_path / name, most=10)
