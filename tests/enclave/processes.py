"""Processes of workers, as the kernel shows them, and one that tries to outlive its datasite."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

#: Clears the signal by which it ends with its parent, in each thread, and never ends by itself.
CLEARING = """
import ctypes, signal, sys, threading
from datasites.enclave.confine import WorkerLimits, confine
def clear():
    return ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
for number in range(1, 64):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
before = clear() if "before" in sys.argv else None
confine(WorkerLimits())
threading.Thread(target=clear).start()
sys.stderr.write(f"cleared: {clear()}, {before}\\n"); sys.stderr.flush()
while True: pass
"""


def gone(pids: list[int], *, seconds: int = 2) -> bool:
    """Whether no process of these runs or stands still, after some seconds at most."""
    for _ in range(100 * seconds):
        left = [pid for pid in pids if Path(f"/proc/{pid}").exists() and state(pid) not in "ZX"]
        if not left:
            return True
        time.sleep(0.01)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return False


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
