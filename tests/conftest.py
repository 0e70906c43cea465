"""Before anything imports Ray: it reads its environment once a process, and the embedded Ray wants a token."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from trainer import logs
from trainer.launch_ray import QUIET_ENVIRONMENT

for name, value in QUIET_ENVIRONMENT.items():
    os.environ.setdefault(name, value)


@pytest.fixture(autouse=True, scope="module")
def loggers() -> Iterator[None]:
    """Commands that run in a test's own process take our loggers over: not for the next file of tests."""
    yield
    for package in logs.PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
