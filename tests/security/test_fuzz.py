"""Spoiled inputs end well or with an error of theirs: exit code 0, 2, 3 or 5, one line an error, nothing outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security.fuzz import PARTS, fuzz

# Parquet is fuzzed by hand so far (docs/security.md): a bad input can make Arrow itself abort the process.
FAST = {"run_files": 100, "checkpoints": 25}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", list(FAST))
def test_spoiled_inputs_are_refused_in_words(name: str, tmp_path: Path) -> None:
    """The same inputs every time."""
    inputs, codes = fuzz(PARTS[name], FAST[name], None, tmp_path)
    assert inputs > FAST[name] // 3
    assert codes[0] > 0
    assert codes.total() > codes[0] > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", list(FAST))
def test_thousands_of_them(name: str, tmp_path: Path) -> None:
    inputs, _ = fuzz(PARTS[name], 2000, 1, tmp_path)
    assert inputs > 1000
