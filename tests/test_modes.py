"""What is written is for its owner only, whatever the umask of whoever starts a program."""

import ast
import os
import stat
import subprocess
import sys

import pytest
import yaml
from harness.import_graph import FILES, ROOT
from harness.tiny_study import TINY, changed

import sahfl
from sahfl.atomic import make_folder
from sahfl.regular_files import open_to_append


@pytest.fixture(autouse=True)
def open_to_all():
    before = os.umask(0)
    yield
    os.umask(before)


def readable_by_others(folder):
    """Files and folders that others than their owner may read, write or enter."""
    found = [path for path in folder.rglob("*") if not path.is_symlink()]
    assert found
    return [path for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_folders_are_made_for_their_owner_each_of_them(tmp_path):
    make_folder(tmp_path / "a" / "b" / "c")
    assert readable_by_others(tmp_path) == []
    make_folder(tmp_path / "a" / "b" / "c")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a", new=True)
    (tmp_path / "file").touch(mode=0o600)
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file" / "below")


def test_a_log_is_made_for_its_owner(tmp_path):
    open_to_append(tmp_path / "log").close()
    assert readable_by_others(tmp_path) == []


def test_a_simulation_from_python_writes_nothing_that_others_can_read(tmp_path):
    sahfl.simulate(
        changed(TINY, pretrain__rounds=1, finetune__rounds=1), out=tmp_path / "run", workers=1, progress=False
    )
    assert (tmp_path / "run" / "results.json").is_file()
    assert {path.name for path in (tmp_path / "run" / "sites" / "sah_a").iterdir()} >= {"cache", "manifest.json"}
    assert readable_by_others(tmp_path) == []


def test_a_program_writes_nothing_that_others_can_read(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(TINY))
    code = "import sys; sys.argv = sys.argv[1:]\nfrom sahfl.cli import main\nmain()"
    command = ["sahfl", "phantom", str(tmp_path / "new" / "scans"), "--study", str(tmp_path / "study.yaml")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, umask=0)
    assert done.returncode == 0, done.stderr
    assert readable_by_others(tmp_path / "new") == []


def test_one_module_makes_folders():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("mkdir", "makedirs"):
                assert path.relative_to(ROOT).as_posix() == "sahfl/atomic.py"
