"""The command as a user meets it: one process a call, its lines and its exit codes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embeddings.errors import PlanDoesNotFitError, PlanError
from pipelines.errors import DataError, SchemaError
from trainer.cli import cli
from trainer.cli_boundary import guarded
from trainer.errors import CheckpointError, ConfigError, RunDataError
from trainer.plan_verb import parse_size

ROOT = Path(__file__).parents[2]
QUICK = str(ROOT / "trainer" / "configs" / "quick.toml")


def tokenformer(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from trainer.cli import main; main()"
    command = [sys.executable, "-c", program, str(ROOT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert all(line.startswith("error: ") for line in lines), done.stderr
    for part in parts:
        assert part in done.stderr


def test_help_is_quick_and_imports_nothing_heavy():
    began = time.perf_counter()
    done = tokenformer("--help")
    assert time.perf_counter() - began < 5  # 0.1 s on an idle machine; the imports below are what would cost
    assert done.returncode == 0
    heavy = ("torch", "torchrec", "ray", "pyarrow", "pydantic")
    code = f"import sys; import trainer.cli; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_every_verb_answers_help_and_can_be_imported():
    verbs = {"data", "train", "plan", "doctor", "evaluate", "audit", "checkpoint", "report", "compare", "submit"}
    assert set(cli.commands) == verbs
    assert set(cli.commands["data"].commands) == {"synth", "movielens", "prepare", "inspect", "profile", "compare"}
    assert set(cli.commands["checkpoint"].commands) == {"list", "verify", "diff", "reshard", "unshard"}
    for verb in ["train", "plan", "evaluate", "audit", "data synth", "checkpoint list"]:
        assert tokenformer(*verb.split(), "--help").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing option '--config'"),
        (["train", "--config", QUICK, "--resume", "maybe"], "'maybe' is not one of"),
        (["train", "--config", QUICK, "--max-steps", "0"], "--max-steps"),
        (["train", "--config", QUICK, "--run-dri", "x"], "unknown argument '--run-dri'"),
        (["train", "--config", "absent.toml"], "run file 'absent.toml' is not a file"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments, part):
    assert_refused(tokenformer(*arguments), 2, part)


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_without_a_verb_the_help_is_shown(arguments):
    done = tokenformer(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: tokenformer")
    assert "error" not in done.stderr


def test_two_config_problems_are_both_reported():
    done = tokenformer("train", "--config", QUICK, "--model.dims", "3", "--train.log-every", "often")
    assert_refused(done, 2, "did you mean 'dim'?", "train.log_every = 'often'")
    assert len(done.stderr.strip().splitlines()) == 2


def test_plan_tells_what_does_not_fit():
    refused = tokenformer("plan", "--config", QUICK, "--world-size", "2", "--memory", "700KB")
    assert refused.returncode == 4
    assert "error: rank 0 (and 1 more rank(s)): tables take" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_plan_refuses_tables_that_the_device_cannot_train():
    done = tokenformer("plan", "--config", QUICK, "--world-size", "1", "--embeddings.dtype", "bf16")
    assert_refused(done, 2, "dtype = 'bf16' on cpu → FBGEMM has it on CUDA only → dtype = 'fp16'")
    assert len(done.stderr.strip().splitlines()) == 1


def test_train_says_what_is_wrong_with_the_data_and_leaves_nothing(tmp_path):
    rows = tmp_path / "rows" / "dt=2026-11-20"
    rows.mkdir(parents=True)
    (rows / "part-0.parquet").write_bytes(b"")
    (rows / "part-1.parquet").write_bytes(b"PAR1 cut short")
    done = tokenformer("train", "--config", QUICK, "--data.rows", str(rows.parent), "--run-dir", "run", cwd=tmp_path)
    assert_refused(done, 3, "part-0.parquet", "part-1.parquet")
    assert not (tmp_path / "run").exists()


def test_train_names_rows_that_are_not_there(tmp_path):
    done = tokenformer("train", "--config", QUICK, "--data.rows", f"{tmp_path}/none/*.parquet", cwd=tmp_path)
    assert_refused(done, 3, "none/*.parquet")
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_that_holds_something_is_refused_before_data_are_made(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    done = tokenformer("train", "--config", QUICK, "--run-dir", "run", cwd=tmp_path)
    assert_refused(done, 2, "notes.txt", "--resume auto")
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "notes.txt"]


def test_resume_must_needs_a_checkpoint(tmp_path):
    (tmp_path / "run" / "checkpoints" / "step_00000010").mkdir(parents=True)  # without COMMIT
    done = tokenformer("train", "--config", QUICK, "--run-dir", "run", "--resume", "must", cwd=tmp_path)
    assert_refused(done, 5, "step_00000010")


def test_torchrun_backend_outside_torchrun(tmp_path):
    done = tokenformer("train", "--config", QUICK, "--launch.backend", "torchrun", cwd=tmp_path)
    assert_refused(done, 2, "RANK and WORLD_SIZE are not in the environment")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(["one", "two"]), 2),
        (SchemaError(["one", "two"]), 2),
        (PlanError(["one", "two"]), 2),
        (DataError(["one", "two"]), 3),
        (RunDataError(["one", "two"]), 3),
        (PlanDoesNotFitError(["one", "two"]), 4),
        (CheckpointError(["one", "two"]), 5),
    ],
)
def test_exit_codes(error, code, capsys):
    def fail() -> None:
        try:
            raise error
        except Exception as cause:  # as a library wraps it
            raise RuntimeError("wrapped") from cause

    assert guarded(fail) == code
    assert capsys.readouterr().err == "error: one\nerror: two\n"


def test_the_unforeseen_shows_its_trace_and_says_it_is_a_bug(capsys):
    def fail() -> None:
        raise ZeroDivisionError("oh")

    assert guarded(fail) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError: oh" in said
    assert said.rstrip().splitlines()[-1].startswith("error: this is a bug")


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * 10**9), ("1.5GiB", 3 * 2**29), ("7 kb", 7000), ("12", 12)])
def test_sizes(text, size):
    assert parse_size(text) == size
    with pytest.raises(ConfigError, match="80GB"):
        parse_size(f"{text} or so")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_never_takes_a_run_directory_that_exists(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "runs" / "synthetic").mkdir(parents=True)
    (tmp_path / "runs" / "synthetic-2").mkdir()
    done = subprocess.run(
        ["make", "-n", "train", "-o", "setup"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--run-dir runs/synthetic-3" in done.stdout
