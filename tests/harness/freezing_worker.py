"""A worker process that freezes in the middle of a reply: what SIGSTOP, a swapped-out machine or a debugger does."""

import os
import pickle
import signal
import struct
from pathlib import Path

from sahfl.federation.workers.worker import work


def work_until_frozen(requests, replies, logs, app_of):
    """The real worker; where a file ``freeze`` lies in its logs, the one that takes it stops with half a reply sent."""
    send = replies.send

    def send_or_freeze(content):
        if content[0] == "reply" and (Path(logs) / "freeze").exists():
            (Path(logs) / "freeze").unlink()
            frame = pickle.dumps(content)
            os.write(replies.fileno(), struct.pack("!i", len(frame)) + frame[: len(frame) // 2])
            os.kill(os.getpid(), signal.SIGSTOP)
        send(content)

    replies.send = send_or_freeze
    work(requests, replies, logs, app_of)
