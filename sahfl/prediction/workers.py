"""Worker processes that segment scans side by side; one that dies costs the scan that it had."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from sahfl.errors import RunFailed, SahflError
from sahfl.prediction.many import Outcome, Run, predict_case, refused
from sahfl.prediction.scan_list import Wish
from sahfl.prediction.segment import Predictor, read_predictor
from sahfl.prediction.written import Wanted
from sahfl.process import n_threads, own_process, spawning

ENDS_S = 5.0
"""Time that an idle worker gets to end by itself."""


@dataclass(frozen=True)
class Job:
    """What every worker needs to know."""

    run: Path
    method: str | None
    fold: int | None
    threshold: float
    out: Path
    wanted: Wanted

    def read(self) -> Predictor:
        """The networks."""
        return read_predictor(self.run, method=self.method, fold=self.fold, threshold=self.threshold)


def runner(job: Job, predictor: Predictor, n_workers: int) -> Run:
    """What segments scans: this process, or several others."""
    return partial(_here, job, predictor) if n_workers == 1 else partial(_beside, job, n_workers)


def _here(job: Job, predictor: Predictor, wishes: Sequence[Wish]) -> Iterator[Outcome]:
    for wish in wishes:
        yield predict_case(job.out, wish, predictor, job.wanted)


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    wish: Wish | None = None
    is_ready: bool = False
    """Whether it has read its networks."""


def _beside(job: Job, n_workers: int, wishes: Sequence[Wish]) -> Iterator[Outcome]:
    """Give each worker a scan at a time; a worker that dies is replaced.

    Raises:
        RunFailed: a worker died without a scan, so another would too.
        OSError: what stopped a worker, such as a full disk.
    """
    waiting = list(reversed(wishes))
    with _staff(job, min(n_workers, len(wishes))) as (workers, hire):
        while waiting or any(worker.wish for worker in workers):
            for worker in workers:
                if worker.wish is None and waiting:
                    worker.wish = waiting.pop()
                    with suppress(OSError):  # it is dead, which is found where its answer is read
                        worker.pipe.send(worker.wish)
            ready = wait([worker.pipe for worker in workers if worker.wish])
            answers = [(index, worker, worker.wish) for index, worker in enumerate(workers) if worker.pipe in ready]
            for index, worker, wish in answers:
                assert wish is not None
                try:
                    answer = worker.pipe.recv()
                except (EOFError, OSError):  # it was killed, mostly by the system for its memory
                    worker.process.join()
                    code = worker.process.exitcode
                    if not worker.is_ready:
                        raise RunFailed(f"a worker process could not begin (exit code {code}); use fewer") from None
                    answer = refused(job.out, wish, f"its process ended (exit code {code}); more memory may help")
                    workers[index] = hire()
                if isinstance(answer, BaseException):
                    raise answer
                if isinstance(answer, Outcome):
                    worker.wish = None
                    yield answer
                worker.is_ready = True


@contextmanager
def _staff(job: Job, n: int) -> Iterator[tuple[list[_Worker], Callable[[], _Worker]]]:
    """Workers, and what makes one more; each sends ``ready`` when it has read its networks."""
    import torch

    context = multiprocessing.get_context("spawn")
    threads = n_threads(max(1, torch.get_num_threads() // n))
    with ExitStack() as stack:

        def hire() -> _Worker:
            ours, theirs = context.Pipe()
            process = own_process(_work, (theirs, job))
            with spawning(threads):
                process.start()
            theirs.close()
            stack.callback(_dismiss, process, ours)
            return _Worker(process, ours)

        yield [hire() for _ in range(n)], hire


def _dismiss(process: SpawnProcess, pipe: Connection) -> None:
    pipe.close()  # an idle worker ends by itself
    process.join(ENDS_S / 50)
    if process.is_alive():
        process.terminate()
        process.join(ENDS_S)
    if process.is_alive():
        process.kill()


def _work(pipe: Connection, job: Job) -> None:
    """Segment scans until the other end of the pipe is closed, also by the death of the process there."""
    predictor = job.read()
    pipe.send("ready")
    while True:
        try:
            wish: Any = pipe.recv()
        except EOFError:
            return
        try:
            answer: Outcome | Exception = predict_case(job.out, wish, predictor, job.wanted)
        except (OSError, SahflError) as error:
            answer = error
        try:
            pipe.send(answer)
        except OSError:  # nobody is there any more
            return
