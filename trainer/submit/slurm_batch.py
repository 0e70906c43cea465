"""The batch process of a Slurm job: it starts the ranks with srun and decides what their end means.

Slurm tells a job to leave with SIGTERM (preemption) or, some time before a time limit, with SIGUSR1 to this process
alone. The ranks then save and leave, and the job is queued again. Ranks that died are started again at once, on the
same nodes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from trainer.config import load_config
from trainer.config_sections import Launch
from trainer.run_dir import RunDir
from trainer.submit import slurm
from trainer.submit.order import launch_folder, stop_file
from trainer.submit.record import last_lines

Next = Literal["end", "again", "requeue"]


def decide(code: int, end: str, refused: bool, stop_wanted: bool, restarts_left: int) -> Next:
    """What follows the end of the ranks. code: of srun. end: the event that closed the run, or "". refused: what is
    wrong no restart can mend."""
    if refused or stop_wanted or end == "finished":
        return "end"
    if end == "stopped":
        return "requeue"
    if code == 0:  # a run that ended well before it began to train
        return "end"
    return "again" if restarts_left > 0 else "end"


def main(run_dir: str) -> int:
    """Returns the job's exit code."""
    folder, job = launch_folder(Path(run_dir)), os.environ["SLURM_JOB_ID"]
    launch = load_config(str(folder / "run.toml")).launch
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: _ask_ranks_to_leave(job))
    restarts, newest = 0, None
    while True:
        for refused in folder.glob("refused-*"):
            refused.unlink()
        began = time.time()
        code = _run_ranks(run_dir, launch)
        found = RunDir(run_dir).latest()
        restarts = 0 if found != newest else restarts  # it got on meanwhile
        newest = found
        refused_codes = [int(path.read_text(encoding="utf-8")) for path in folder.glob("refused-*")]
        stop_wanted = stop_file(Path(run_dir)).exists()
        following = decide(
            code, last_lines(run_dir, began)[0], bool(refused_codes), stop_wanted, launch.max_restarts - restarts
        )
        if following == "end":
            return refused_codes[0] if refused_codes else code
        if following == "requeue":
            _say("left before the end of the run: queued again")
            slurm.requeue(job)
            signal.pause()  # Slurm ends this process
        restarts += 1
        _say(f"a rank died (exit code {code}): start {restarts} of {launch.max_restarts} without a new checkpoint")


def _run_ranks(run_dir: str, launch: Launch) -> int:
    environment = dict(os.environ, MASTER_ADDR=_first_host(launch.nodes), MASTER_PORT=str(_free_port()))
    command = ["srun", f"--ntasks={launch.workers}", "--kill-on-bad-exit=1", "--export=ALL", "--unbuffered"]
    ranks = [sys.executable, "-m", "trainer.submit.slurm_rank", run_dir]
    return subprocess.call([*command, *ranks], env=environment)  # noqa: S603 - no shell, no text of anybody's


def _ask_ranks_to_leave(job: str) -> None:
    """Signals the steps of the job and not this process."""
    _say("told to leave: the ranks save and leave")
    subprocess.Popen(["scancel", "--signal=TERM", job])  # noqa: S603, S607 - as above


def _first_host(nodes: int) -> str:
    """This process runs on the first node of the job."""
    return "127.0.0.1" if nodes == 1 else socket.gethostname()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        port: int = listening.getsockname()[1]
        return port


def _say(line: str) -> None:
    print(f"[slurm] {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
