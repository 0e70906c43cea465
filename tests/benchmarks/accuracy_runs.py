"""A run, from its settings to its figures, by the public command and in processes of its own.

    OUT/data/log-VERSION     the event log
    OUT/data/rows-HASH       request rows, once for all runs that have the same
    OUT/runs/HASH-SEED.toml  the run file; .log: what was said; .done: trained to its end
    OUT/runs/HASH-SEED/      the run directory: a run that was cut off goes on there
    OUT/predictions/         of runs that are compared with each other

Locks are held by the processes that work, so a second command, or one after a kill, waits instead of interfering.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tomli_w

from tests.benchmarks.accuracy_matrix import Run
from tests.benchmarks.accuracy_results import Figures, held
from tests.benchmarks.accuracy_settings import TASK, TASKS, TEST, TRAIN, VALID, rows_hash, run_file

ROOT = Path(__file__).resolve().parents[2]
LOOKED_AT = 128  # rows of the test split, for sequential collapse
SCORES = ("auc", "loss", "ne", "calibration", "examples")


class FailedError(Exception):
    """A command ended with an error: its last lines."""


class Runner:
    """Carries runs out. `stop` ends the ones under way: each leaves a checkpoint to go on from."""

    def __init__(self, archive: Path, out: Path) -> None:
        self.archive, self.out = archive.resolve(), out.resolve()
        self.log = self.out / "data" / f"log-{log_version()}"
        self._stopping = threading.Event()
        self._under_way: set[subprocess.Popen[bytes]] = set()

    def stop(self) -> None:
        """From any thread or a signal handler."""
        self._stopping.set()
        for process in list(self._under_way):
            process.terminate()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def __call__(self, run: Run) -> Figures | None:
        """What the results file says of it; None where it was stopped. Waits for a process that is at this very run,
        perhaps left over from a command that was killed. Raises FailedError."""
        place = self.out / "runs" / f"{run.hash}-{run.seed}"
        place.parent.mkdir(parents=True, exist_ok=True)
        with held(place.with_suffix(".lock"), lambda: self.stopping) as lock:
            rows = self._rows(run, lock)
            content = self._run_file(run, rows)
            place.with_suffix(".toml").write_text(tomli_w.dumps(content), encoding="utf-8")
            if rows is None or not self._trained(place, lock):
                return None
            figures = identity(run) | {"dense_parameters": dense_parameters(place.with_suffix(".toml"))}
            figures |= training_figures(place)
            figures["test"] = None
            if run.test:
                test = self._score(place, lock, rows / "segment=3-test")
                if test is None:
                    return None
                figures |= test
            check_counts(figures)
            if run.part == "live":
                predictions = self._predictions(place, lock)
                if predictions is None:
                    return None
                other = predictions.with_name(f"{run.hash}-{run.compare}.npz")
                figures["difference"] = difference(other, predictions) if other.exists() else None
            return figures

    def _rows(self, run: Run, lock: int) -> Path | None:
        """Prepared once; a folder is there whole or not at all."""
        data = self.out / "data"
        rows = data / f"rows-{rows_hash(run.settings)}"
        with held(data / "lock", lambda: self.stopping) as of_data:
            if not self.log.exists():
                command = ("data", "movielens", "--zip", str(self.archive), "--out", str(self.log))
                if not self._call("trainer", command, self.log.with_suffix(".log"), lock, of_data):
                    return None
            if not rows.exists():
                run_toml = rows.with_suffix(".toml")
                run_toml.write_text(tomli_w.dumps(self._run_file(run, rows)), encoding="utf-8")
                command = ("data", "prepare", "--config", str(run_toml), "--out", str(rows))
                if not self._call("trainer", command, rows.with_suffix(".log"), lock, of_data):
                    return None
        return rows

    def _run_file(self, run: Run, rows: Path | None) -> dict[str, Any]:
        """With what is this machine's: paths, one process of one thread, checkpoints to go on from."""
        content = run_file(run.settings, run.seed)
        content["data"]["rows"] = str(rows)
        content["data"]["prepare"]["log"] = str(self.log)
        content["launch"] = {"workers": 1, "threads": 1}
        content["checkpoint"] = {"every_minutes": 2.0, "keep": 1}
        content["telemetry"] = {"prometheus": False, "tensorboard": False, "tables_every": 0}
        if every := content["train"].get("eval_every"):
            content["train"]["log_every"] = every
        return content

    def _trained(self, place: Path, lock: int) -> bool:
        """To its end; a run that was cut off goes on."""
        finished = place.with_suffix(".done")
        if not finished.exists():
            config = str(place.with_suffix(".toml"))
            command = ("train", "--config", config, "--run-dir", str(place), "--resume", "auto")
            if not self._call("trainer", command, place.with_suffix(".log"), lock):
                return False
            finished.touch()
        return True

    def _score(self, place: Path, lock: int, rows: Path | None, predictions: Path | None = None) -> Figures | None:
        scores = place.with_suffix(".scores.json")
        command = ["--run", str(place), "--scores", str(scores)]
        command += ["--rows", str(rows)] if rows else []
        command += ["--predictions", str(predictions)] if predictions else ["--collapse", str(LOOKED_AT)]
        if not self._call("tests.benchmarks.accuracy_score", command, place.with_suffix(".log"), lock):
            return None
        found = json.loads(scores.read_text(encoding="utf-8"))
        return {"test": scores_of(found["tasks"]), "collapse": looks_of(found["collapse"])}

    def _predictions(self, place: Path, lock: int) -> Path | None:
        path = self.out / "predictions" / f"{place.name}.npz"
        path.parent.mkdir(exist_ok=True)
        if not path.exists() and self._score(place, lock, None, path) is None:
            return None
        return path

    def _call(self, module: str, arguments: list[str] | tuple[str, ...], log: Path, *locks: int) -> bool:
        """False where it was stopped. The process holds the locks, so that nobody else begins what it is at."""
        if self.stopping:
            return False
        paths = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        with log.open("ab") as said:
            command = [sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, cwd=self.out, env=environment, stdout=said, stderr=said, pass_fds=locks)
        self._under_way.add(process)
        if self.stopping:  # it was asked for in between
            process.terminate()
        code = process.wait()
        self._under_way.discard(process)
        if self.stopping:
            return False
        if code:
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
            raise FailedError(f"{module} {arguments[0]} ended with {code}:\n" + "\n".join(tail))
        return True


def identity(run: Run) -> Figures:
    """What a line says of the run itself. No path is in it."""
    return {
        "part": run.part,
        "name": run.name,
        "ranker": run.ranker,
        "seed": run.seed,
        "hash": run.hash,
        "settings": dict(run.settings),
        "code": code_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    }


def training_figures(run_dir: Path) -> Figures:
    """From metrics.jsonl. seconds: of training, evaluation and checkpoints left out, as the median step times steps:
    a pause of the machine does not count. curve: [examples, seconds, AUC] of evaluations under way."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    evaluated = [line for line in lines if line["kind"] == "eval"]
    step = median(line["step_seconds"] for line in trained)
    last = trained[-1]
    if not evaluated or evaluated[-1]["step"] != last["step"]:
        raise FailedError(f"{run_dir.name} ended without an evaluation of its last step")
    figures = {
        "steps": last["step"],
        "examples": last["examples"],
        "seconds": round(step * last["step"], 1),
        "bad_steps": last["bad_steps"],
        "progressive": scores_of(last["lifetime"]),
        "held_out": scores_of(evaluated[-1]["tasks"]),
    }
    if len(evaluated) > 1:
        figures["curve"] = [
            [line["examples"], round(step * line["step"], 1), line["tasks"][TASK]["auc"]] for line in evaluated
        ]
    return figures


def scores_of(tasks: dict[str, dict[str, Any]]) -> Figures:
    return {name: tasks[TASK].get(name) for name in SCORES}


def looks_of(collapse: Figures | None) -> Figures | None:
    """Of each layer: effective rank by kind of token, and the share of their attention that behaviours give to fields.
    None for a ranker without layers of tokens."""
    if collapse is None:
        return None
    return {
        "effective_rank": collapse["effective_rank"],
        "on_fields": collapse["attention"].get("sequence", {}).get("field"),
        "even": collapse["even_attention"].get("sequence", {}).get("field"),
    }


def check_counts(figures: Figures) -> None:
    """Raises FailedError: other examples than the protocol's are another test. Days are cut elsewhere."""
    settings = figures["settings"]
    counts = {"1-train": TRAIN, "2-valid": VALID, "3-test": TEST}
    trained, held_out = (counts.get(settings[f"data.{key}"]) for key in ("segments", "eval_segments"))
    expected = {
        "training": (figures["examples"], trained and TASKS * trained * settings["data.epochs"]),
        "held-out": (figures["held_out"]["examples"], held_out),
        "test": (figures["test"] and figures["test"]["examples"], figures["test"] and TEST),
    }
    for name, (found, wanted) in expected.items():
        if wanted and found != wanted:
            raise FailedError(f"{found:,} {name} examples → the protocol has {wanted:,}: nothing is comparable")


def difference(one: Path, other: Path) -> float:
    """Mean |p1 − p2| ÷ mean p, of two runs over the same examples. Raises FailedError where they are not the same."""
    with np.load(one) as a, np.load(other) as b:
        if not (np.array_equal(a["label"], b["label"]) and np.array_equal(a["user"], b["user"])):
            raise FailedError(f"{one.name} and {other.name} are of other examples")
        p, q = a["probability"].astype(np.float64), b["probability"].astype(np.float64)
    return float(np.abs(p - q).mean() / ((p.mean() + q.mean()) / 2))


def dense_parameters(config_path: Path) -> int:
    """Counted on the ranker itself."""
    import torch

    from embeddings.specs import table_specs
    from trainer.config import load_config
    from trainer.layout import make_layout
    from trainer.make_ranker import make_ranker

    config = load_config(config_path)
    layout = make_layout(config.schema, table_specs(config.schema, config.embeddings))
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make_ranker(layout.spec, config.model).parameters())


def log_version() -> str:
    """Of the code that makes the log: another log is made where its columns may be others."""
    sources = sorted((ROOT / "pipelines").glob("movielens*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]


def code_version() -> str:
    """The commit, "+" where files differ from it; "" without git."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
