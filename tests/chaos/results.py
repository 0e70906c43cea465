"""results.jsonl, and the table that is made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

HEADER = ("fault", "came", "survived", "recovered in s: median", "longest")


class Results:
    """One JSON object a sequence, in the order they were played; whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.all: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def has(self, seed: int) -> bool:
        """Whether it survived before. One that failed is played again."""
        return any(found["seed"] == seed and found["outcome"] == "survived" for found in self.all)

    def add(self, outcome: dict[str, Any]) -> None:
        self.all = [found for found in self.all if found["seed"] != outcome["seed"]] + [outcome]
        part = self._path.with_suffix(".part")
        part.write_text("".join(json.dumps(found, ensure_ascii=False) + "\n" for found in self.all))
        part.replace(self._path)


def rows_of(results: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Of the table, a fault a row, in the order of their names."""
    rows: list[tuple[str, ...]] = []
    for name in sorted({met["name"] for found in results for met in found["met"]}):
        of = [(found, met) for found in results for met in found["met"] if met["name"] == name and met["came"]]
        survived = sum(found["outcome"] == "survived" for found, _ in of)
        seconds = [met["recover_seconds"] for _, met in of if met["recover_seconds"] is not None]
        times = (f"{median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("–", "–")
        rows.append((name, str(len(of)), str(survived), *times))
    return rows


def closing(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last line that is printed."""
    seconds = [m["recover_seconds"] for r in results for m in r["met"] if m["recover_seconds"] is not None]
    failed = [found["seed"] for found in results if found["outcome"] == "failed"]
    return {
        "chaos": {
            "sequences": len(results),
            "survived": len(results) - len(failed),
            "failed_seeds": sorted(failed),
            "faults": sum(met["came"] for found in results for met in found["met"]),
            "to_the_bit": sum(found["to_the_bit"] for found in results),
            "resized": sum(not found["to_the_bit"] for found in results),
            "recover_seconds": {"median": median(seconds), "longest": max(seconds)} if seconds else {},
            "seconds": round(sum(found["seconds"] for found in results), 1),
        }
    }
