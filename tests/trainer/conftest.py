"""What several modules of tests of the `checkpoint` verbs look at."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.trainer.saved_runs import GOLDEN, GOLDEN_STEP, Command, save, tensors_of
from trainer.cli import cli
from trainer.cli_boundary import guarded

if TYPE_CHECKING:
    from tests.trainer.verb_runs import Trained


@pytest.fixture(scope="session")
def checkpointed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """See verb_runs.py; not to be changed."""
    from tests.trainer.verb_runs import train_on_two_ranks  # torchrec, which most modules here do without

    return train_on_two_ranks(tmp_path_factory.mktemp("verbs"))


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """(exit code, stdout, lines of stderr) of `tokenformer checkpoint …`, in this process."""

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        words = ["checkpoint", *map(str, arguments)]
        code = guarded(lambda: cli.main(words, prog_name="tokenformer", standalone_mode=False))
        said = capfd.readouterr()
        assert "Traceback" not in said.err, said.err
        return code, said.out, said.err.splitlines()

    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with the golden checkpoint of step 4, in today's format."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(GOLDEN / "config.toml", folder)
    save(folder / "checkpoints" / "step_00000004", tensors_of(GOLDEN_STEP))
    return folder
