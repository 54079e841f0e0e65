"""One request to a site in a network namespace that holds nothing but the server, with every connection traced.

unshare -n python offline_session.py FOLDER TRACE
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from harness.live_site import Server, client, consortium_of, describe_request, write_site
from harness.tiny_study import TINY
from sahfl.federation import protocol

SITE = "tbi_a"


def main(folder, trace):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    consortium = consortium_of(folder / "consortium", [SITE])
    site_file = write_site(folder, TINY, SITE, consortium)
    tracing = ["strace", "-f", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    with Server(consortium) as server, client(site_file, wrapper=tracing) as running:
        reply = server.ask(SITE, describe_request(TINY), protocol.DESCRIBE, timeout_s=300)
        assert reply.has_content(), reply.error
        seen = b"".join(read(path) for path in Path("/proc").glob("[0-9]*/cmdline"))
        seen += b"".join(read(path) for path in Path("/proc").glob("[0-9]*/environ"))
        assert str(site_file).encode() in seen
        for name in ("node.key", "client.key"):
            for line in (consortium.sites[SITE] / name).read_bytes().splitlines():
                assert line.startswith(b"-----") or line not in seen, f"{name} shows in the list of processes"
        daemon = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()[0]
        os.kill(int(daemon), signal.SIGTERM)  # strace itself would only let go of it
        running.process.wait(60)
    print(consortium.port)


def read(path):
    try:
        return path.read_bytes()
    except OSError:  # a process that has just ended
        return b""


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
