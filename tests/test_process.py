"""What every program takes from the system: a signal that ends it, locks, and the time as text."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from sahfl.errors import RunError
from sahfl.process import environment, is_locked, locked, now, now_text

PROGRAMS = ["sahfl.cli", "sahfl_server.main", "sahfl_client.main"]
BEGIN = "import os, signal, sys, time\nfrom sahfl.process import stoppable\n"
HELD = BEGIN + "from pathlib import Path\nfrom sahfl.process import locked\n"
HELD += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"


def start(code, *arguments, ignored=False, **more):
    """A process that runs Python code; with ``ignored`` as a shell starts one in the background."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | more,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
    )


def run(block, **more):
    """Exit code and output of a process that runs a block which signals can stop."""
    process = start(f"{BEGIN}with stoppable():\n{textwrap.indent(textwrap.dedent(block), '    ')}", **more)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err


# --------------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_is_an_interrupt_that_names_it(name):
    code, out, err = run(f"""
        try:
            os.kill(os.getpid(), signal.{name})
            time.sleep(60)
        except KeyboardInterrupt as interrupt:
            print(interrupt)
        """)
    assert (code, out, err) == (0, name, "")


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGINT", "SIGTERM"), ("SIGTERM", "SIGINT")])
def test_the_second_signal_ends_the_process_at_once(first, second):
    code, out, _ = run(f"""
        try:
            os.kill(os.getpid(), signal.{first})
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.{second})
            print("not at once")
        """)
    assert (code, out) == (-signal.Signals[second], "")


def test_ctrl_c_counts_also_where_a_shell_in_the_background_had_it_ignored():
    code, _, err = run("os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(1)\nprint('ignored')", ignored=True)
    assert code != 0
    assert "KeyboardInterrupt: SIGINT" in err


def test_an_interrupt_that_python_drops_comes_again():
    code, out, err = run("""
        class Falls:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
        try:
            Falls()
            time.sleep(60)
        except KeyboardInterrupt as interrupt:
            print(interrupt)
        """)
    assert (code, out, err) == (0, "SIGTERM", "")


def test_another_error_that_python_drops_is_reported_as_ever():
    _, _, err = run("""
        class Falls:
            def __del__(self):
                raise ValueError("dropped")
        Falls()
        """)
    assert "ValueError: dropped" in err


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_while_a_program_is_loaded_is_lost_in_no_library(program, tmp_path):
    """Libraries take what is raised in an import for their own error, and Python drops it in a callback of its own."""
    (tmp_path / "typer.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
        "raise SystemExit(7)\n"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    process = start(f"from {program} import main; main()", ignored=True, PYTHONPATH=paths)
    assert process.wait(60) == -signal.SIGINT
    assert process.communicate() == ("", "")


def test_afterwards_signals_do_what_they_did_before():
    code = (
        f"{BEGIN}before = signal.getsignal(2), signal.getsignal(15), sys.unraisablehook\nwith stoppable():\n    pass\n"
    )
    process = start(code + "print(before == (signal.getsignal(2), signal.getsignal(15), sys.unraisablehook))")
    assert process.communicate(timeout=60)[0] == "True\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's signal mask from /proc")
def test_ctrl_c_reaches_no_process_that_is_spawned_with_interrupts_blocked():
    code = textwrap.dedent("""
        import multiprocessing, re, time
        from pathlib import Path
        from sahfl.process import interrupts_blocked
        for _ in range(2):  # Python starts a process of its own before the first one
            with interrupts_blocked():
                child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
                child.start()
            status = Path(f"/proc/{child.pid}/status").read_text()
            print(int(re.search(r"SigBlk:\\s*(\\w+)", status)[1], 16))
        """)
    out, err = start(code).communicate(timeout=60)
    assert out.split() == [str(1 << signal.SIGINT - 1)] * 2, err


def test_processes_that_start_in_the_block_have_its_variables_and_this_one_keeps_its_own(monkeypatch):
    monkeypatch.setenv("SAHFL_TEST_A", "own")
    monkeypatch.delenv("SAHFL_TEST_B", raising=False)
    read = "import os; print(os.environ['SAHFL_TEST_A'], os.environ['SAHFL_TEST_B'])"
    with environment({"SAHFL_TEST_A": "x", "SAHFL_TEST_B": "y"}):
        assert subprocess.run([sys.executable, "-c", read], capture_output=True, text=True).stdout == "x y\n"
    assert ("SAHFL_TEST_B" in os.environ, os.environ["SAHFL_TEST_A"]) == (False, "own")
    with pytest.raises(KeyError), environment({"SAHFL_TEST_A": "x", "SAHFL_TEST_B": "y"}):
        os.environ["SAHFL_TEST_C"]
    assert (os.environ["SAHFL_TEST_A"], os.environ.get("SAHFL_TEST_B")) == ("own", None)


# ----------------------------------------------------------------------------------------------------------- locks


@pytest.mark.parametrize("place", ["new/folder/lock", "."])
def test_a_lock_keeps_a_second_process_out_until_the_first_ends_however_it_ends(tmp_path, place):
    path = tmp_path / place
    with start(HELD, path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="is busy"), locked(path, busy=RunError("is busy")):
            pass
        process.kill()
        process.wait()
        with locked(path, busy=RunError("is busy")):
            pass


def test_without_an_error_to_raise_the_second_process_waits(tmp_path):
    done = threading.Event()

    def wait():
        with locked(tmp_path / "lock"):
            done.set()

    with locked(tmp_path / "lock"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not done.wait(0.2)
    waiting.join(10)
    assert done.is_set()


def test_whether_a_lock_is_held_is_seen_without_making_its_file(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists()
    with locked(path):
        assert is_locked(path)
    assert not is_locked(path)


# -------------------------------------------------------------------------------------------------------- the time


def test_the_time_is_written_in_utc_to_the_second_or_finer():
    assert now().utcoffset().total_seconds() == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", now_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", now_text("milliseconds"))
    assert abs(now().timestamp() - time.time()) < 5


def test_a_spawned_process_does_not_run_a_script_that_has_no_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys, time\n"
        "from sahfl.process import main_left_out\n"
        "print('begun', flush=True)\n"
        "process = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(0,))\n"
        "main = sys.modules['__main__']\n"
        "with main_left_out():\n"
        "    process.start()\n"
        "assert sys.modules['__main__'] is main\n"
        "process.join()\n"
        "print('ended', process.exitcode)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout == "begun\nended 0\n", done.stderr
