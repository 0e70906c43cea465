"""The judge of chaos finds what it is for: one lost row, one repeated step, one weight that differs in a bit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.judge import End, differing_batches, end_of, judge
from tests.chaos.play import run_unhurt
from tests.chaos.scene import ROWS, STEPS
from trainer.consumed_format import Record, decode_rows, encode_rows, file_name

pytestmark = pytest.mark.timeout(200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that nobody hurt."""
    return tmp_path_factory.mktemp("judged") / "unhurt"


@pytest.fixture(scope="module")
def expected(folder: Path) -> End:
    return run_unhurt(folder, 1)


def test_a_run_that_was_left_alone_is_as_itself(expected: End) -> None:
    assert expected.counts == (STEPS, ROWS, 0)
    assert judge(expected, expected, to_the_bit=True) == []


def test_one_lost_row_is_found(folder: Path, expected: End, tmp_path: Path) -> None:
    """In the record of what was trained: it is held against the files, and against the run that was never hurt."""
    shutil.copytree(folder, tmp_path / "hurt")
    path = tmp_path / "hurt" / "run" / "consumed" / file_name(0, 0)
    lines = path.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if '"parts"' in line)
    record = Record.model_validate_json(lines[at])
    part = max(record.parts, key=lambda part: part.rows.count)
    shorter = part.model_copy(update={"rows": encode_rows(decode_rows(part.rows)[1:])})
    parts = tuple(shorter if each is part else each for each in record.parts)
    lines[at] = record.model_copy(update={"parts": parts}).model_dump_json()
    path.write_text("\n".join(lines) + "\n")
    problems = judge(end_of(tmp_path / "hurt" / "run"), expected, to_the_bit=False)
    assert any(line.startswith("audit: ") for line in problems)
    assert sum("the rows of batches" in line for line in problems) == 1


def test_one_bit_of_one_weight_is_found(expected: End) -> None:
    name = next(name for name, tensor in expected.tensors.items() if tensor.is_floating_point() and tensor.numel() > 1)
    tensor = expected.tensors[name].clone()
    tensor.view(-1)[1] = tensor.view(-1)[1] * (1 + 1e-6) + 1e-9
    hurt = replace(expected, tensors=expected.tensors | {name: tensor})
    assert judge(hurt, expected, to_the_bit=True) == [f"tensor {name} differs"]
    assert judge(hurt, expected, to_the_bit=False) == []  # other numbers of workers round otherwise


def test_a_step_told_twice_and_a_state_that_differs_are_found(expected: End) -> None:
    told = replace(expected, told=(*expected.told[:5], 5, *expected.told[6:]))
    assert judge(told, expected, to_the_bit=True) == ["metrics.jsonl: steps missing [6], told twice [5]"]
    state = replace(expected, state=expected.state.model_copy(update={"examples": 1}))
    assert judge(state, expected, to_the_bit=False) == ["state.json: examples differs"]


def test_batches_are_compared_wherever_both_runs_saved() -> None:
    a, b, c = (frozenset({("part-0", row)}) for row in range(3))
    often = {(0, "day"): {(2, 3): a, (5, 6): b, (8, 9): c}}
    assert differing_batches({(0, "day"): {(2, 3): a, (8, 9): b | c}}, often) == []
    [moved] = differing_batches({(0, "day"): {(2, 3): a | b, (8, 9): c}}, often)[:1]
    assert moved == "epoch 0, segment day: the rows of batches from 0 differ"
    assert len(differing_batches({(0, "day"): {(2, 4): a, (5, 7): b, (8, 10): c}}, often)) == 1  # at other steps
    assert len(differing_batches({(0, "day"): {(2, 3): a, (5, 6): b}}, often)) == 1
    assert len(differing_batches({}, often)) == 1
