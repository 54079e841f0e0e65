"""Two hundred rounds: what a site's service and its child hold does not grow."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord
from harness.live_site import Server, client, consortium_of, train_request, write_site
from harness.tiny_study import TINY

from sahfl.federation import protocol

SITE = "tbi_a"
ROUNDS, WARM = 200, 50
MOST_KIB = 100
"""Growth a round; the whole network goes up and down, so that a single kept copy would be far more."""


def resident_kib(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.slow
def test_A18_two_hundred_rounds_at_a_site_leave_memory_and_open_files_as_they_were(tmp_path, scans):
    consortium = consortium_of(tmp_path / "consortium", [SITE])
    shutil.copytree(scans / SITE, tmp_path / SITE)
    request = train_request(TINY, steps=1)
    header, task = request["header"], json.loads(request["task"]["json"])
    assert protocol.n_bytes(request) > 10 * MOST_KIB * 1024
    memory, files = {"daemon": [], "child": []}, {"daemon": [], "child": []}
    with Server(consortium) as server, client(write_site(tmp_path, TINY, SITE, consortium)) as running:
        running.wait_for("connected")
        pids = {"daemon": running.process.pid, "child": running.trainer()}
        for number in range(ROUNDS):
            # Each round is another one, because a site answers a round once.
            header["round"] = number + 1
            request["task"] = ConfigRecord({"json": json.dumps(task | {"round": number + 1, "rounds": ROUNDS})})
            assert server.ask(SITE, request, protocol.TRAIN).has_content(), number
            for name, pid in pids.items():
                memory[name].append(resident_kib(pid))
                files[name].append(open_files(pid))
        assert running.trainer() == pids["child"]
        assert running.stop() == 0
    for name in pids:
        slope = np.polyfit(range(ROUNDS - WARM), memory[name][WARM:], 1)[0]
        print(f"{name}: {slope:.2f} KiB a round, open files {min(files[name][WARM:])} to {max(files[name][WARM:])}")
        assert slope < MOST_KIB, f"{name}: {slope:.1f} KiB a round, {memory[name][WARM]} to {memory[name][-1]} KiB"
        assert max(files[name][WARM:]) <= max(files[name][:WARM]) + 1, name
