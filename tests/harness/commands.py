"""The command ``sahfl simulate`` as processes, for tests that stop or kill it, and what it leaves on disk."""

import json
import subprocess
import sys
import time
from pathlib import Path

import yaml

SAHFL = Path(sys.executable).with_name("sahfl")


def write(path, settings):
    path.write_text(yaml.safe_dump(settings))
    return path


def start(*arguments):
    return subprocess.Popen(
        [SAHFL, "simulate", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def tensors(folder):
    paths = [*folder.glob("adapters/**/*.safetensors"), *folder.glob("base/*.safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def journal(folder, event=None):
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if event in (None, line["event"])]


def wait_for_round(process, folder, *, cell, timeout_s=120):
    end = time.monotonic() + timeout_s
    while not list((folder / "state" / cell).glob("round-*.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def processes_of_session(session):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for_no_process(session, timeout_s=5):
    """Python's own helper process of multiprocessing ends a moment after its parent; nothing else may outlive it."""
    end = time.monotonic() + timeout_s
    while left := processes_of_session(session):
        assert time.monotonic() < end, f"processes {left} outlived the command"
        time.sleep(0.02)
