"""What is chosen and why; real Ray workers and a real torchrun; stop requests and errors cross the processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.config import Data
from tests.trainer import entries
from trainer import machine
from trainer.config_sections import Launch
from trainer.errors import ConfigError, RunDataError
from trainer.job import Job
from trainer.launch import choose, run
from trainer.stop import Interrupts, LocalStop

ROOT = Path(__file__).parents[2]
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


def launched(launch: Launch, entry, stop: LocalStop | None = None):
    stop = stop or LocalStop()
    job = Job(SimpleNamespace(launch=launch, data=Data(rows="")), "/nowhere", stop)  # type: ignore[arg-type]
    with Interrupts(stop) as interrupts:
        return run(job, choose(launch, {}), stop, interrupts, entry)


@pytest.fixture
def cores(monkeypatch):
    def pretend(count: int) -> None:
        monkeypatch.setattr(machine, "cores", lambda: count)
        monkeypatch.setattr(machine, "gpus", lambda: (0, "no GPU here"))

    return pretend


@pytest.mark.parametrize(
    ("launch", "env", "count", "expected"),
    [
        (Launch(), {}, 8, ("ray", 2, 4)),
        (Launch(), {}, 1, ("inline", 1, 1)),
        (Launch(workers=1), {}, 8, ("inline", 1, 8)),
        (Launch(workers=3), {}, 8, ("ray", 3, 2)),
        (Launch(workers=4), {}, 2, ("ray", 4, 1)),
        (Launch(workers=1, backend="ray"), {}, 2, ("ray", 1, 2)),
        (Launch(backend="inline"), {}, 4, ("inline", 1, 4)),
        (Launch(threads=3), {}, 8, ("ray", 2, 3)),
        (Launch(), TORCHRUN, 8, ("torchrun", 4, 4)),
        (Launch(workers=1, backend="inline"), TORCHRUN, 8, ("inline", 1, 8)),
    ],
)
def test_choice(cores, launch, env, count, expected):
    cores(count)
    choice = choose(launch, env)
    assert (choice.backend, choice.workers, choice.threads) == expected
    assert len(choice.reasons) == 3
    assert all("(" in reason for reason in choice.reasons)


def test_contradictions_with_the_environment():
    with pytest.raises(ConfigError, match="torchrun sets them"):
        choose(Launch(backend="torchrun"), {})


def test_torchrun_decides_how_many_and_says_so():
    choice = choose(Launch(workers=2), TORCHRUN)
    assert (choice.backend, choice.workers) == ("torchrun", 4)
    assert "launch.workers = 2 is for other launchers" in choice.reasons[1]


def test_inline_runs_here():
    assert launched(Launch(backend="inline"), entries.describe)["world_size"] == 1


@pytest.mark.timeout(150)
def test_ray_workers_form_a_group_speak_plainly_and_stop_together(capfd):
    class Terminal:
        """Asks the process to end, as `kill` does, as soon as rank 0 has said that it runs."""

        def __init__(self) -> None:
            self.text = ""

        def write(self, text: str) -> int:
            self.text += text
            if text == "running":
                threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM)).start()
            return len(text)

        def flush(self) -> None:
            pass

    terminal = Terminal()
    with contextlib.redirect_stdout(terminal):  # type: ignore[type-var]
        result = launched(Launch(workers=2), entries.describe_until_stopped)
    stopped_at = result.pop("stopped_at")
    assert stopped_at is not None
    assert result == {
        "world_size": 2,
        "sum": 2,
        "cwd": os.getcwd(),
        "threads": os.environ["OMP_NUM_THREADS"],
        "master": True,
    }
    assert terminal.text.splitlines() == ["step 1 · rank 0 speaks", "running", f"checkpoint at step {stopped_at}"]
    assert capfd.readouterr().err.strip() == "SIGTERM: saving a checkpoint and leaving; once more to leave at once"


@pytest.mark.timeout(150)
def test_a_workers_error_comes_back_as_it_was():
    with pytest.raises(RunDataError) as caught:
        launched(Launch(workers=2), entries.bad_data_on_rank_1)
    assert caught.value.problems[0].startswith("column 'click' holds 3")
    assert len(caught.value.problems) == 2


PROGRAM = """
import sys
from types import SimpleNamespace
from pipelines.config import Data
from tests.trainer import entries
from trainer.config_sections import Launch
from trainer.job import Job
from trainer.launch import choose, run
from trainer.stop import Interrupts, LocalStop
import torch.distributed as dist

stop = LocalStop()
launch = Launch()
choice = choose(launch)
if choice.backend == "torchrun":
    dist.init_process_group("gloo")
print("armed", flush=True)
with Interrupts(stop) as interrupts:
    job = Job(SimpleNamespace(launch=launch, data=Data(rows="")), "/nowhere", stop)
    print(run(job, choice, stop, interrupts, getattr(entries, sys.argv[1])))
if choice.backend == "torchrun":
    dist.destroy_process_group()  # gloo's threads do not survive an exit without it
"""


@pytest.mark.timeout(120)
def test_torchrun_runs_the_same_entry(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command = [*torchrun, "--nproc-per-node", "2", str(script), "describe"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'world_size': 2, 'sum': 2") == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_inline_run_in_order(tmp_path, number):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.replace("Launch()", "Launch(backend='inline')"))
    with subprocess.Popen(
        [sys.executable, str(script), "until_stopped"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "running\n":
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "checkpoint at step" in out
    assert "leaving" in err


def test_before_there_is_a_run_a_signal_interrupts_at_once():
    stop, before = LocalStop(), signal.getsignal(signal.SIGTERM)
    with Interrupts(stop), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert not stop.requested()
    assert signal.getsignal(signal.SIGTERM) is before
