"""Evicted rows of sharded tables begin anew: initial values, state zero, all others bit for bit as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embeddings.init import fill
from tests.embeddings.resets import RESET, SEED, SPECS

pytestmark = pytest.mark.timeout(400)  # the ranks start inside the first test


@pytest.mark.parametrize("world_size", [2, 3])
def test_reset_rows_begin_anew_and_no_others(on_ranks: dict[int, list[dict[str, Any]]], world_size: int) -> None:
    initial = {name: torch.empty(spec.rows, spec.width, dtype=spec.torch_dtype) for name, spec in SPECS.items()}
    for name, spec in SPECS.items():
        fill(initial[name], spec, SEED)
    results = [rank["reset"] for rank in on_ranks[world_size]]
    seen = trained = 0
    for result in results:
        for key, boxes in result["after"].items():
            name, part = key.split("/")
            for ((first, *_), after), (_, before) in zip(boxes, result["before"][key], strict=True):
                reset = torch.tensor([first + r in RESET.get(name, []) for r in range(len(after))])
                expected = initial[name][first : first + len(after)] if part == "weight" else torch.zeros_like(after)
                assert torch.equal(after[~reset], before[~reset]), key
                assert torch.equal(after[reset], expected[reset]), key
                if part == "weight":
                    seen += int(reset.sum())
                    trained += int((before[reset] != after[reset]).any(1).sum())
    assert seen == sum(map(len, RESET.values()))
    assert trained >= seen - 2, "training had changed these rows"
    told = [told for result in results for told in result["told"]]
    for name, rows in RESET.items():
        assert sorted(row for table, found in told if table == name for row in found.tolist()) == rows
    assert {key for key in results[0]["after"] if not key.endswith("/weight")} == {
        f"{name}/momentum1" for name in ("user", "item", "page", "geo")
    }
