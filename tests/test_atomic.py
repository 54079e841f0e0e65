import resource

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


def test_a_reader_of_the_old_file_keeps_the_old_content(tmp_path):
    write_atomic(tmp_path / "state", "old")
    with (tmp_path / "state").open() as reader:
        write_atomic(tmp_path / "state", "new")
        assert reader.read() == "old"
