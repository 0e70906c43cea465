"""A process that had joined a group ends with its code and all that it said, and without C++ destructors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import atexit, ctypes, logging, sys, threading, time
from trainer import leaving

leaving.prepare()
if "joined" in sys.argv:
    leaving.joined_a_group()
# As a destructor that fails at the end of the interpreter does.
ctypes.pythonapi.Py_AtExit(ctypes.cast(ctypes.CDLL(None).abort, ctypes.CFUNCTYPE(None)))
atexit.register(print, "exit handler")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
print("unfinished line,", end=" ")
sys.exit(leaving.with_code(5))
"""


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("argument", "code"), [("joined", 5), ("alone", -6)])
def test_what_comes_after_python_does_not_run(argument: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == code, done.stderr
    if argument == "joined":
        assert done.stdout == "unfinished line, thread\nexit handler\n"
