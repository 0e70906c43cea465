"""The command inside the test's own process: for what ends before, or without, other processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.integration.command import Ended
from trainer import logs
from trainer.cli import cli
from trainer.cli_boundary import guarded

Call = Callable[..., Ended]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """call(cwd, *arguments): the command's end. What it sets for its process is set back after the test."""
    environment, threads = dict(os.environ), torch.get_num_threads()

    def command(cwd: Path, *arguments: str) -> Ended:
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setenv("COLUMNS", "80")
        capfd.readouterr()
        code = guarded(lambda: cli.main(list(arguments), prog_name="tokenformer", standalone_mode=False))
        out, err = capfd.readouterr()
        return Ended(code, out, err)

    yield command
    os.environ.clear()
    os.environ.update(environment)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    for package in logs.PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
