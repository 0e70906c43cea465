"""A canary among the secrets: nothing that a run writes, says or serves has it, and a URI that holds one is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipelines.errors import DataError
from pipelines.manifest import read_manifest
from pipelines.secrets import secret_in, without_secrets
from tests.integration.command import started, write_run_file
from tests.integration.conftest import Call
from tests.integration.test_first_steps import scraped
from trainer.cli_boundary import guarded

CANARY = "c4n4ry-9f2b"
NAMES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN", "GRAFANA_PASSWORD", "SLURM_JWT")
WITH_KEYS = (
    f"s3://key:{CANARY}@bucket/rows",
    f"s3://key:a/{CANARY}@bucket/rows",
    f"abfs://:{CANARY}@account/rows",
    f"https://host/rows?X-Amz-Signature={CANARY}",
    f"s3://bucket/rows?region=x&session_token={CANARY}",
    f"gs://bucket/rows?access_token={CANARY}&x=y",
    f"abfs://c@account/rows?sv=1&sig={CANARY}",
)
WITHOUT = (
    "s3://bucket/rows?region=eu-west-1&scheme=http&endpoint_override=127.0.0.1:9000",
    "hdfs://host:8020/logs/a@b",
    "hdfs://user@host:8020/logs",
    "gs://anonymous@bucket/token=1/secret",
    "abfs://container@account.example/rows?credential_kind=environment",
    "rows/user:name@place",
    "s3://bucket/dt=2026-11-20/*.parquet",
)


@pytest.mark.parametrize("uri", WITH_KEYS)
def test_keys_in_a_uri_are_found_and_hidden(uri: str) -> None:
    assert secret_in(uri)
    assert CANARY not in secret_in(uri)
    assert CANARY not in without_secrets(f"reading '{uri}' failed: AWS Error at {uri}, and {uri}")


@pytest.mark.parametrize("uri", WITHOUT)
def test_what_is_no_key_stays(uri: str) -> None:
    assert secret_in(uri) == ""
    assert without_secrets(uri) == uri


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--config", "run.toml"),
        ("plan", "--config", "run.toml", "--world-size", "2"),
        ("submit", "--config", "run.toml", "--to", "slurm"),
        ("data", "prepare", "--config", "run.toml"),
    ],
)
@pytest.mark.parametrize("key", ["rows", "store"])
def test_a_run_file_with_keys_is_refused_without_showing_them(
    call: Call, tmp_path: Path, arguments: tuple[str, ...], key: str
) -> None:
    run_file = write_run_file(tmp_path)
    uri = WITH_KEYS[0] if key == "rows" else WITH_KEYS[4]
    old = 'rows = "rows"' if key == "rows" else 'store = ""'
    assert old in run_file.read_text()
    run_file.write_text(run_file.read_text().replace(old, f'{key} = "{uri}"'))
    ended = call(tmp_path, *arguments)
    assert ended.code == 2
    assert CANARY not in ended.out + ended.err
    [line] = ended.errors
    assert f"{'data' if key == 'rows' else 'checkpoint'}.{key} holds" in line
    assert line.count(" → ") == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "inspect", WITH_KEYS[0]),
        ("data", "compare", WITH_KEYS[0], WITH_KEYS[4]),
        ("evaluate", "--run", "run", "--data", WITH_KEYS[3]),
        ("checkpoint", "verify", WITH_KEYS[5]),
        ("train", "--config", "run.toml", f"--checkpoint.store={WITH_KEYS[0]}"),
        ("train", "--config", "run.toml", "--checkpoint.store", WITH_KEYS[4]),
        ("report", "--run", WITH_KEYS[1]),
    ],
)
def test_so_is_a_command_line(call: Call, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ended = call(tmp_path, *arguments)
    assert ended.code == 2
    assert CANARY not in ended.out + ended.err
    assert "command line" in ended.errors[0]


def test_so_is_a_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "files.csv"
    manifest.write_text(f"path,rows\n{WITH_KEYS[4]},3\n")
    with pytest.raises(DataError) as error:
        read_manifest(str(manifest))
    assert "entry 1: its path holds the option" in str(error.value)
    assert CANARY not in str(error.value)


def test_a_traceback_hides_keys_too(capfd: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise RuntimeError(f"no connection to {WITH_KEYS[0]}")

    assert guarded(broken) == 1
    said = capfd.readouterr().err
    assert "RuntimeError: no connection to s3://" in said
    assert CANARY not in said


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_nothing_that_a_run_leaves_or_serves_has_a_secret_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole life of a run: trained, stopped with Ctrl-C, evaluated, exported, looked at."""
    import re
    import signal

    for name in NAMES:
        monkeypatch.setenv(name, CANARY)
    telemetry = {"prometheus": True, "tensorboard": True}
    write_run_file(tmp_path, data={"epochs": 100}, checkpoint={"every_steps": 4}, telemetry=telemetry)
    train = ("train", "--config", "run.toml", "--launch.workers", "1", "--run-dir", "run")
    with started(tmp_path, *train) as command:
        found = command.until(
            lambda: re.search(r"(http://127\.0\.0\.1:\d+/metrics)", command.said()), "the endpoint's address"
        )
        samples = command.until(lambda: scraped(found[1], "tokenformer_checkpoint_step", 4), "a checkpoint")
        ended = command.end(signal.SIGINT)
    assert ended.code == 0, ended.err
    assert CANARY not in repr(samples) + ended.out + ended.err
    left = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    expected = ("config.toml", "env.json", "plan.json", "train.log", "metrics.jsonl", "report.html")
    assert all(f"run/{name}" in left for name in expected)
    assert [name for name, content in left.items() if CANARY.encode() in content] == []


def test_what_is_given_to_slurm_has_no_secret_of_the_environment(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch hands the environment on by itself; what is kept of the job names none of it."""
    for name in NAMES:
        monkeypatch.setenv(name, CANARY)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "sbatch").write_text("#!/bin/sh\necho 17\n")
    (bin_ / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    write_run_file(tmp_path)
    submit = ("submit", "--config", "run.toml", "--to", "slurm", "--detach", "--launch.workers", "2")
    ended = call(tmp_path, *submit, "--run-dir", "run")
    assert ended.code == 0, ended.err
    launch = tmp_path / "run" / "launch"
    assert {"job.sbatch", "run.toml"} <= {path.name for path in launch.iterdir()}
    assert [path for path in launch.rglob("*") if path.is_file() and CANARY in path.read_text()] == []
    assert CANARY not in ended.out + ended.err
    shutil.rmtree(bin_)
