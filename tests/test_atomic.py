import os
import resource
import subprocess
import sys

import pytest

from sahfl.atomic import write_atomic


def test_text_and_bytes_are_written_into_folders_that_it_makes(tmp_path):
    write_atomic(tmp_path / "a" / "b" / "text", "größer\n")
    write_atomic(tmp_path / "a" / "bytes", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "größer\n".encode()
    assert (tmp_path / "a" / "bytes").read_bytes() == b"\x00\xff"


def test_a_file_is_replaced_as_a_whole_and_nothing_else_is_left_behind(tmp_path):
    write_atomic(tmp_path / "state", "a long old content")
    write_atomic(tmp_path / "state", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_text() == "new"


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new_one(tmp_path):
    write_atomic(tmp_path / "state", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomic(tmp_path / "state", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_text() == "old"


def test_content_that_cannot_be_encoded_leaves_the_old_file(tmp_path):
    write_atomic(tmp_path / "state", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "state", "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (tmp_path / "state").read_text() == "old"


WRITER = """
import os, sys
from pathlib import Path
from sahfl.atomic import write_atomic
flush = os.fsync

def rest(descriptor):
    print("written", flush=True)
    if sys.stdin.readline() != "go on\\n":
        os._exit(9)
    flush(descriptor)

os.fsync = rest
write_atomic(Path(sys.argv[1]), "theirs")
"""


@pytest.fixture
def writer(tmp_path):
    """Another process in the middle of writing the same file: it goes on where it is told so, and else dies."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "state"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "written\n"
        yield process


def test_two_processes_that_write_one_file_at_the_same_time_both_succeed(tmp_path, writer):
    write_atomic(tmp_path / "state", "ours")
    assert (tmp_path / "state").read_text() == "ours"
    writer.communicate("go on\ngo on\n")
    assert writer.returncode == 0
    assert (tmp_path / "state").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_a_killed_process_left_goes_when_the_file_is_written_again(tmp_path, writer):
    writer.communicate("")
    (left,) = tmp_path.iterdir()
    assert (writer.returncode, left.name) == (9, f"state.{writer.pid}.tmp")
    write_atomic(tmp_path / "state.1", "another file")
    assert left.exists()
    write_atomic(tmp_path / "state", "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state", "state.1"]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / f"state.{os.getpid()}.tmp").symlink_to(tmp_path / "elsewhere")
    write_atomic(tmp_path / "state", "ours")
    assert (tmp_path / "elsewhere").read_text() == "theirs"
    assert not (tmp_path / "state").is_symlink()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600


def test_a_reader_of_the_old_file_keeps_the_old_content(tmp_path):
    write_atomic(tmp_path / "state", "old")
    with (tmp_path / "state").open() as reader:
        write_atomic(tmp_path / "state", "new")
        assert reader.read() == "old"
