"""What one fuzzed input did: it was accepted, refused by an error of ours, or it found a fault."""

from __future__ import annotations

import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

from harness.fuzz.mutations import mutated
from sahfl.errors import SahflError

ROOT, OURS = Path(__file__).parents[3], ("sahfl", "server", "client")
"""The project, and its folders with code that is not a test's."""
MOST_CPU_S = 5.0
"""Processor seconds of one input; an input of a good reader takes milliseconds."""
ADDRESSES = 1 << 30
"""Bytes of address space that an input may take."""
MOST_MIB = 128
"""Growth of the process's memory by one input, of at most 1 MB."""


@dataclass(frozen=True)
class Reader:
    """What reads the inputs of one target in this process."""

    corpus: Mapping[str, bytes]
    """The valid inputs by name; the name's ending is the format."""
    read: Callable[[str, bytes], None]
    """Reads an input that stands in the place of the valid one of this name; raises ``SahflError`` to refuse it."""
    change: Callable[[str, bytes, Random, tuple[bytes, ...]], bytes] = mutated
    """Makes a changed input of a valid one."""
    close: Callable[[], None] = lambda: None
    """Ends what the reader keeps open."""

    @classmethod
    def of_folder(cls, folder: Path, read: Callable[[str], object], *names: str) -> Reader:
        """A reader of files in a folder: the changed one lies in the place of the valid one while ``read`` runs.

        ``read`` gets the name of the changed file; without ``names``, every file of the folder is one.
        """
        paths = [folder / name for name in names] or [path for path in sorted(folder.rglob("*")) if path.is_file()]
        corpus = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

        def read_changed(name: str, content: bytes) -> None:
            (folder / name).write_bytes(content)
            try:
                read(name)
            finally:
                (folder / name).write_bytes(corpus[name])

        return cls(corpus, read_changed)

    def input(self, target: str, seed: int) -> tuple[str, bytes]:
        """The name of the changed valid input, and the input of a seed."""
        rng = Random(f"{target}:{seed}")
        name = rng.choice(sorted(self.corpus))
        return name, self.change(name, self.corpus[name], rng, tuple(self.corpus.values()))


@dataclass(frozen=True)
class Outcome:
    """What an input did."""

    accepted: bool
    fault: str = ""
    """What is not allowed, and where it was raised; empty if nothing."""


class Overrun(BaseException):
    """Raised into a reader that used up its processor time; no reader catches it."""


def outcome(reader: Reader, name: str, content: bytes) -> Outcome:
    """Let a reader read an input, in the main thread of the process."""
    before = _memory_kib("VmRSS", from_now=True)
    signal.signal(signal.SIGPROF, _overrun)
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
    try:
        with warnings.catch_warnings(), limited_addresses():
            warnings.simplefilter("error")
            reader.read(name, content)
        found = Outcome(accepted=True)
    except SahflError as error:
        found = Outcome(accepted=False, fault=_out_of_memory(error))
    except Overrun as error:
        found = Outcome(accepted=False, fault=f"more than {MOST_CPU_S:g} s of processor time in {place(error)}")
    except Exception as error:  # the fault that this is about
        found = Outcome(accepted=False, fault=f"{type(error).__name__} in {place(error)}{_checked(error)}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if not found.fault and _memory_kib("VmHWM") - before > MOST_MIB * 1024:
        found = Outcome(found.accepted, f"more than {MOST_MIB} MiB of memory")
    return found


@contextmanager
def limited_addresses() -> Iterator[None]:
    """Let what takes ``ADDRESSES`` more than now end in a MemoryError, before it takes all of the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def place(error: BaseException) -> str:
    """The last line of our own that an error passed through, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(Path(frame.filename).is_relative_to(ROOT / name) for name in OURS)]
    chosen = [*ours[-1:], *frames[-1:]] if ours[-1:] != frames[-1:] else frames[-1:]
    return ", ".join(f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}" for frame in chosen)


def _checked(error: Exception) -> str:
    """What a check of the target found, such as the status of a server; the texts of other errors hold the input."""
    return f": {str(error)[:200]}" if isinstance(error, AssertionError) else ""


def _out_of_memory(error: BaseException | None) -> str:
    """An allocation beyond the limit, which a reader turned into an error of ours.

    Not where it hides its cause, as that of DICOM does: pydicom reserves as many addresses as an element claims to have
    bytes, and fills none of them.
    """
    while error is not None:
        if isinstance(error, MemoryError):
            return f"MemoryError in {place(error)}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


def _overrun(number: int, frame: FrameType | None) -> None:
    raise Overrun


def _memory_kib(name: str, *, from_now: bool = False) -> int:
    """Memory of this process by Linux's name for it; ``from_now`` lets its peak (``VmHWM``) begin anew."""
    if from_now:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
