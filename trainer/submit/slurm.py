"""Slurm: the job script rendered from the run file, and Slurm's own commands for the rest."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files

import jinja2

from trainer.config import Config
from trainer.errors import ConfigError, UserError
from trainer.run_dir import write_atomic
from trainer.submit.order import Order, output_file, stop_file
from trainer.submit.record import Launched, Status, last_lines

ANSWER_SECONDS = 60.0
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED")
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")
ENDED_WELL, CANCELLED = "COMPLETED", "CANCELLED"


class SlurmError(UserError):
    """Slurm refused, or does not answer; its own words."""


@dataclass(frozen=True)
class JobState:
    """As Slurm has it. name: "" where it has forgotten the job."""

    name: str
    reason: str


def problems(config: Config) -> list[str]:
    """What of the run file Slurm cannot do, a line each."""
    launch = config.launch
    if launch.workers % launch.nodes == 0:
        return []
    return [
        f"launch.workers = {launch.workers} on launch.nodes = {launch.nodes} → every node takes equally many → "
        "choose a multiple"
    ]


def script(order: Order) -> str:
    """The text of the job script. Raises ConfigError: a path or label that no job script can hold."""
    launch = order.config.launch
    labels = ",".join(f"{key}={value}" for key, value in launch.labels.items())
    texts = (order.name, str(order.cwd), str(order.run_dir), order.code, order.python, labels)
    bad = [text for text in texts if not text.isprintable()]
    if bad:
        raise ConfigError(f"{bad[0]!r} → a line of a job script holds printable characters → rename it")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - a shell script: quoted, not escaped for HTML
    environment.filters["quoted"] = lambda value: shlex.quote(str(value))
    text = (files("trainer.submit") / "train.sbatch.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        order=order, launch=launch, labels=labels, output=output_file(order.run_dir)
    )


def submit(order: Order) -> Launched:
    """Queue it. Raises SlurmError with Slurm's own words, ConfigError."""
    path = order.folder / "job.sbatch"
    write_atomic(path, script(order))
    stop_file(order.run_dir).unlink(missing_ok=True)
    job = call("sbatch", "--parsable", str(path)).strip().split(";")[0]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Launched("slurm", job, str(order.run_dir), order.config.launch.workers, now)


def status(launched: Launched) -> Status:
    """Where the job is; of one that Slurm has forgotten, what the run itself said last. Raises SlurmError."""
    end, progress = last_lines(launched.run_dir)
    found = job_state(launched.job)
    if found.name in WAITING:
        return Status("waiting", found.reason, progress)
    if found.name in RUNNING:
        return Status("running", "", progress)
    if end == "finished":
        return Status("finished", "", progress)
    if end == "stopped" or (found.name == CANCELLED and launched.stop_file.exists()):
        return Status("stopped", "", progress)
    if not found.name:
        return Status("unknown", "Slurm has forgotten the job, and the run never ended", progress)
    return Status("failed", found.reason if found.name == "FAILED" else found.name.lower(), progress)


def stop(launched: Launched) -> None:
    """Ask the run to save and leave; a job that waits is taken back. Raises SlurmError."""
    write_atomic(launched.stop_file, "")
    if job_state(launched.job).name in WAITING:
        call("scancel", launched.job)
    else:
        call("scancel", "--signal=TERM", launched.job)


def take_back(launched: Launched) -> None:
    """Out of the queue."""
    call("scancel", launched.job)


def fetch_output(launched: Launched) -> None:
    """The job itself writes where it is read."""


def requeue(job: str) -> None:
    """From inside the job: Slurm ends it and queues it again."""
    call("scontrol", "requeue", job)


def job_state(job: str) -> JobState:
    """Asks the controller, which forgets a job some minutes after its end. Raises SlurmError."""
    try:
        text = call("scontrol", "show", "job", job, "--oneliner")
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return JobState("", "")
        raise
    fields = dict(part.split("=", 1) for part in text.split() if "=" in part)
    reason = fields.get("Reason", "")
    code = fields.get("ExitCode", "0:0")
    return JobState(
        fields.get("JobState", ""), f"exit code {code}" if reason in ("None", "NonZeroExitCode") else reason
    )


def call(*command: str) -> str:
    """A command of Slurm's; its standard output. Raises SlurmError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)  # noqa: S603 - no shell, no text of anybody's
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]} is not on this machine → jobs are given to Slurm by its own commands → run this where its "
            "client is installed, such as a login node"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{command[0]} did not answer within {ANSWER_SECONDS:.0f} s → the controller may be down → "
            "ask `scontrol ping`"
        ) from None
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())
        raise SlurmError(f"{command[0]}: {words} → Slurm refused → mend [launch] or ask `sinfo`")
    return done.stdout
