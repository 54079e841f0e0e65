"""Two hundred rounds: what the server holds does not grow."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from harness.fleet_server import replies, serving
from harness.trust_kits import make_consortium

from sahfl.federation.flower.parcels import prepare
from sahfl.federation.tensors import state_records
from sahfl.payload import Header

ROUNDS, WARM = 200, 50
HEADER = Header("f" * 64, stage="finetune", method="cp_lora-r8", fold=0, round=1, base="0" * 64)
STATE = {f"w{number}": np.ones((200, 90), np.float32) * number for number in range(10)}
"""720 kB, there and back from three sites: a single one kept a round would be a slope of 720 KiB."""


def resident_kib():
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def work(side, site):
    client = side.connect(site)
    while True:
        offer = client.pull()
        if offer is None:
            continue
        message = client.fetch(offer)
        client.confirm(offer)
        content = RecordDict({"metrics": MetricRecord({"n_volumes": 1}), **state_records(HEADER, STATE)})
        client.push(prepare(Message(content, reply_to=message), client.node_id))


def soak(folder):
    """Run the rounds in this process, and print what was measured after each."""
    paths = make_consortium(Path(folder), sites=("bern", "graz", "wien"))
    memory, files = [], []
    with serving(paths) as side:
        for site in paths.sites:
            threading.Thread(target=work, args=(side, site), daemon=True).start()
        for number in range(ROUNDS):
            content = RecordDict(state_records(HEADER, STATE))
            nodes = [side.node(site) for site in paths.sites]
            ids = side.grid.push_messages([side.grid.create_message(content, "train", node, "") for node in nodes])
            assert len(replies(side, *ids, timeout_s=60)) == 3, number
            memory.append(resident_kib())
            files.append(len(os.listdir("/proc/self/fd")))
        print(json.dumps({"memory": memory, "files": files, "held": side.link.counts()}), flush=True)
        os._exit(0)  # the sites' threads go on for ever


@pytest.mark.slow
def test_A18_two_hundred_rounds_leave_memory_and_open_files_as_they_were(tmp_path):
    code = f"from test_soak import soak; soak({str(tmp_path / 'consortium')!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["held"].values()) == {0}
    memory, files = found["memory"], found["files"]
    slope = np.polyfit(range(ROUNDS - WARM), memory[WARM:], 1)[0]
    assert slope < 100, f"{slope:.1f} KiB a round, {memory[WARM]} to {memory[-1]} KiB"
    assert max(files[WARM:]) <= max(files[:WARM]) + 5
