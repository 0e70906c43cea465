"""A run on a real terminal: what is on it while it trains, and what is left when it has ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.command import ROOT, TORCHRUN, write_run_file
from tests.telemetry.terminal import Terminal

WIDTH, HEIGHT = 60, 24


class OnTerminal:
    """A command on a pseudo-terminal of its own; all that it writes is on `terminal`."""

    def __init__(self, arguments: list[str], cwd: Path) -> None:
        self.terminal = Terminal(WIDTH, HEIGHT)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        environment = {key: value for key, value in os.environ.items() if key not in ("CI", "COLUMNS", "LINES")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=_own_terminal,  # noqa: PLW1509 - no thread of this process is needed in the child
        )
        os.close(slave)
        self._rest = b""

    def until(self, reached: Callable[[list[str]], bool], timeout: float = 200) -> None:
        """What it writes is shown, until the screen is as wanted or it has ended."""
        deadline = time.monotonic() + timeout
        while not reached(self.terminal.screen):
            assert time.monotonic() < deadline, "\n".join(self.terminal.screen)
            if select.select([self._master], [], [], 1.0)[0] and not self._read():
                return

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def end(self) -> int:
        self.until(lambda screen: False)
        return self.process.wait(100)

    def _read(self) -> bool:
        try:
            found = self._rest + os.read(self._master, 65_536)
        except OSError:  # the last one has closed it
            return False
        # A character or a control sequence may be cut: it is read with what follows.
        whole = re.sub(rb"(\x1b[^A-Za-z]*|[\xc0-\xff][\x80-\xbf]*)$", b"", found)
        self._rest = found[len(whole) :]
        self.terminal.feed(whole.decode())
        return bool(found)


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C is for this process and its children


@contextlib.contextmanager
def on_terminal(cwd: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> Iterator[OnTerminal]:
    command = OnTerminal([*launcher, "-m", "trainer", *arguments], cwd)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            os.killpg(command.process.pid, 9)
        command.process.wait()


def logged(run: Path) -> list[str]:
    """train.log as it is said on a terminal."""
    lines = (run / "train.log").read_text().splitlines()
    found = [re.fullmatch(r"[\d-]+ [\d:,]+ (\w+) [\w.]+: (.*)", line) for line in lines]
    return [f"{m[1].lower()}: {m[2]}" if m[1] != "INFO" else m[2] for m in found if m]


def assert_clean(terminal: Terminal, run: Path) -> None:
    """Nothing of the display is left, the log is whole and in order, then comes the closing table."""
    said = [line for line in terminal.lines if line]
    assert [line for line in said if line.startswith("── ") or "% ━" in line] == []
    assert terminal.cursor_is_shown
    of_log = logged(run)
    assert len(of_log) > 5
    wanted = set(of_log)
    assert [line for line in said if line in wanted] == of_log
    assert any(line.startswith("try next:") for line in said)


@pytest.mark.timeout(300)
def test_on_a_terminal_a_run_is_seen_and_ctrl_c_leaves_a_clean_screen(tmp_path: Path) -> None:
    write_run_file(tmp_path, data={"epochs": 500}, train={"log_every": 2})
    with on_terminal(tmp_path, "train", "--config", "run.toml", "--run-dir", "run", "--launch.workers", "1") as command:
        command.until(lambda screen: any(line.startswith("── ") and "starting" in line for line in screen))
        command.until(lambda screen: any(re.match(r"step \d+ of [\d ]+   rows \d", line) for line in screen))
        command.until(lambda screen: any(line.startswith("click ") and "AUC" in line for line in screen))
        shown = command.terminal.screen
        assert all(len(line) <= WIDTH for line in shown)
        bottom = "\n".join(shown[-10:])
        assert re.search(r"── . training ─+ run ──", bottom), bottom
        for said in ("loss ", "examples/s ", "data wait ", "checkpoint none yet", " left"):
            assert said in bottom, bottom
        command.press(b"\x03")
        assert command.end() == 0
    assert_clean(command.terminal, tmp_path / "run")
    assert sum("SIGINT: saving a checkpoint and leaving" in line for line in command.terminal.lines) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", ["torchrun", "ray"])
def test_of_two_workers_one_display_is_drawn(tmp_path: Path, launcher: str) -> None:
    write_run_file(tmp_path, data={"epochs": 10}, train={"log_every": 2})
    arguments = ("train", "--config", "run.toml", "--run-dir", "run", "--launch.workers", "2", "--max-steps", "40")
    with on_terminal(tmp_path, *arguments, launcher=TORCHRUN if launcher == "torchrun" else ()) as command:
        command.until(lambda screen: any(line.startswith("click ") and "AUC" in line for line in screen), timeout=400)
        assert "\n".join(command.terminal.screen).count(" training ") == 1
        assert command.end() == 0, "\n".join(command.terminal.screen)
    assert_clean(command.terminal, tmp_path / "run")
    assert not [line for line in command.terminal.lines if "pid=" in line]
