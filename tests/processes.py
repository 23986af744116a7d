"""Programs in a process of their own: what they print, how much memory they take, and where they are killed.

They import from here, so nothing here imports pytest or torch.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[1]
CLEAR_REFS = Path("/proc/self/clear_refs")


def numbers_of(program: str, *arguments: object) -> list[int]:
    """The numbers that a program prints, on one thread; it must end as it should."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


def growth(call) -> int:
    """By how much the resident memory grows at the most while ``call`` runs."""
    CLEAR_REFS.write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0])


def die_at_line(at: int, home: str) -> None:
    """Be killed at the ``at``-th line that runs from now on of files in the folder ``home``."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(home):
            return None
        lines += event == "line"
        if lines == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
