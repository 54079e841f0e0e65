"""Fuzzed inputs of every reader: each is accepted, or refused by an error of ours. ``make soak`` reads a million."""

import gzip
import json
import sys
import time
from random import Random

import pytest
from harness.fuzz.batch import run_batch
from harness.fuzz.mutations import VALUES, as_json, changed_values, mutated
from harness.fuzz.outcome import Reader, outcome
from harness.fuzz.targets import SHARES, TARGETS

from sahfl.errors import DataError

FIRST, EACH = 10**9, 40
"""Seeds of this test, for each share of a target; ``make soak`` begins at 0."""
FOUND: tuple[str, ...] = ("wishes:304", "answers:18152")
"""Inputs that had a fault once, as ``target:seed``."""


@pytest.fixture(scope="module")
def reader_of(tmp_path_factory):
    made = {}

    def reader_of(target):
        if target not in made:
            made[target] = TARGETS[target](tmp_path_factory.mktemp(target))
        return made[target]

    yield reader_of
    for reader in made.values():
        reader.close()


@pytest.mark.parametrize("target", TARGETS)
def test_B07_each_fuzzed_input_is_accepted_or_refused_in_bounded_time_and_memory(reader_of, target):
    reader, accepted, faults = reader_of(target), 0, []
    for name, content in reader.corpus.items():
        assert outcome(reader, name, content).accepted, name
    seeds = range(FIRST, FIRST + EACH * SHARES[target])
    for seed in seeds:
        found = outcome(reader, *reader.input(target, seed))
        accepted += found.accepted
        faults += [f"{target}:{seed}: {found.fault}"] if found.fault else []
    assert not faults
    assert accepted < len(seeds)


@pytest.mark.parametrize("found", FOUND)
def test_B07_an_input_that_had_a_fault_once_has_none(reader_of, found):
    target, _, seed = found.partition(":")
    reader = reader_of(target)
    assert not outcome(reader, *reader.input(target, int(seed))).fault


# --- the harness itself -----------------------------------------------------------------------------------------


def refuse(name, content):
    raise DataError("no")


def divide(name, content):
    return 1 // 0


def work(name, content):
    end = time.process_time() + 30
    while time.process_time() < end:
        pass


def take(name, content):
    return bytearray(300_000_000)


def take_all(name, content):
    return bytearray(20_000_000_000)


def take_quietly(name, content):
    try:
        raise MemoryError
    except MemoryError as error:
        raise DataError("too large") from error


@pytest.mark.parametrize(
    ("read", "accepted", "fault"),
    [
        (lambda name, content: None, True, ""),
        (refuse, False, ""),
        (divide, False, "ZeroDivisionError in faults/test_fuzzed_inputs.py:"),
        (work, False, "more than 0.2 s of processor time in"),
        (take, True, "more than 128 MiB of memory"),
        (take_all, False, "MemoryError in faults/test_fuzzed_inputs.py:"),
        (take_quietly, False, "MemoryError in faults/test_fuzzed_inputs.py:"),
    ],
)
def test_the_outcome_of_an_input_names_what_is_not_allowed(monkeypatch, read, accepted, fault):
    if read is work:
        monkeypatch.setattr("harness.fuzz.outcome.MOST_CPU_S", 0.2)
    found = outcome(Reader({"a": b""}, read), "a", b"")
    assert found.accepted == accepted
    assert found.fault.startswith(fault)
    assert bool(found.fault) == bool(fault)


def test_a_seed_gives_the_same_input_in_every_process(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (TARGETS["nifti"](tmp_path / name) for name in "ab")
    assert [one.input("nifti", seed) for seed in range(50)] == [other.input("nifti", seed) for seed in range(50)]


def test_a_changed_input_keeps_the_form_of_its_format_often():
    rng, whole = Random(1), 0
    content = gzip.compress(b"head" * 200, mtime=0)
    for _ in range(100):
        changed = mutated("a.nii.gz", content, rng)
        whole += changed[:3] == content[:3] and changed != content
    assert whole > 50
    values = {"a": [1, 2.5, "x"], "b": {"c": None}}
    before = repr(VALUES)
    assert len({as_json(changed_values(json.loads(json.dumps(values)), rng)) for _ in range(100)}) > 50
    assert repr(VALUES) == before  # or an input would depend on those before it


BATCH = """
import os, sys
from pathlib import Path
from harness.fuzz.batch import read_inputs
from harness.fuzz.outcome import Reader
from sahfl.errors import DataError

def read(name, content):
    if content == b"3":
        os.abort()
    if content == b"5":
        while True:
            os.read(pipe, 1)
    if content == b"7":
        raise KeyError("x")
    if content == b"8":
        raise DataError("refused")

class Numbered(Reader):
    def input(self, target, seed):
        return "a", str(seed).encode()

pipe = os.pipe()[0]
name, first, count, folder = sys.argv[1:]
read_inputs(lambda folder: Numbered({"a": b"valid"}, read), name, int(first), int(count), Path(folder))
"""


@pytest.mark.slow
def test_an_input_that_ends_or_stops_its_process_is_found_and_the_others_are_read():
    found = run_batch("numbers", 0, 10, command=(sys.executable, "-c", BATCH), stuck_s=10)
    faults = {fault["seed"]: fault["fault"] for fault in found.faults}
    assert faults.keys() == {3, 5, 7}
    assert faults[3].startswith("the process ended with -6")
    assert faults[5] == "no end after 10 s"
    assert faults[7].startswith("KeyError in ")
    assert (found.accepted, found.refused) == (2, 2)  # those of the last process, which read 6 to 9


def test_a_batch_whose_valid_inputs_are_refused_does_not_begin():
    with pytest.raises(RuntimeError, match="the valid input a is refused"):
        run_batch("numbers", 0, 10, command=(sys.executable, "-c", BATCH.replace('b"valid"', 'b"8"')))


def test_every_target_has_a_share_of_the_inputs():
    assert SHARES.keys() == TARGETS.keys()
    assert min(SHARES.values()) >= 1
