"""Runs that several modules look at."""

from __future__ import annotations

import pytest

from tests.trainer.verb_runs import Trained, train_on_two_ranks


@pytest.fixture(scope="session")
def checkpointed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """See verb_runs.py; not to be changed."""
    return train_on_two_ranks(tmp_path_factory.mktemp("verbs"))
