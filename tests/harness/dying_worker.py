"""Worker processes that end before they are ready: a broken installation, or too little memory."""

import os

from sahfl.federation.workers.worker import work


def die(requests, replies, logs, app_of):
    """End before the first word."""
    os._exit(7)


def note_threads(requests, replies, logs, app_of):
    """Leave a note in the logs: with how many threads numpy's linear algebra and PyTorch compute here."""
    import torch

    with open(os.path.join(logs, "threads"), "w") as note:
        note.write(f"{os.environ['OMP_NUM_THREADS']} {torch.get_num_threads()}")
    os._exit(7)


def die_the_second_time(requests, replies, logs, app_of):
    """The first is a real worker; those after it die at their start until a file ``mended`` lies in their logs."""
    started = os.path.join(logs, "started")
    if os.path.exists(started) and not os.path.exists(os.path.join(logs, "mended")):
        os._exit(7)
    open(started, "a").close()
    work(requests, replies, logs, app_of)
