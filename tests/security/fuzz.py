"""Thousands of spoiled inputs: `python -m tests.security.fuzz --examples N [--seed S] [--part run_files …]`.

Prints what came of them, by exit code, and ends with 1 at the first that ended otherwise, which it shows as small as
it can be made. The last line is JSON.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from tests.security import checkpoints, parquet_files, run_files

PARTS: dict[str, ModuleType] = {"run_files": run_files, "parquet": parquet_files, "checkpoints": checkpoints}
HANG_SECONDS = 120.0


def fuzz(part: ModuleType, examples: int, number: int | None, folder: Path) -> tuple[int, Counter[int]]:
    """How many different inputs there were, and what came of each command over them. number: seed, None = the same
    inputs every time. Raises AssertionError, or hypothesis' group of them, with the smallest input that fails."""
    codes: Counter[int] = Counter()
    seen: set[Any] = set()
    part.prepare(folder)

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=number is None,
        suppress_health_check=list(HealthCheck),
    )
    @given(part.cases())
    def every(case: Any) -> None:
        seen.add(case)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            part.check(case, folder, codes)
        finally:
            faulthandler.cancel_dump_traceback_later()

    (every if number is None else seed(number)(every))()
    return len(seen), codes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.security.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="inputs a part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", choices=list(PARTS), action="append")
    asked = parser.parse_args()
    faulthandler.enable()  # a crash of Arrow's says where
    report = {}
    print(f"{'part':12} {'inputs':>7} {'commands':>9} {'exit 0':>7} {'2':>7} {'3':>7} {'5':>7} {'CPU s':>7}")
    for name in asked.part or PARTS:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            inputs, codes = fuzz(PARTS[name], asked.examples, asked.seed, Path(folder))
        took = time.process_time() - began
        counts = " ".join(f"{codes[code]:7,}" for code in (0, 2, 3, 5))
        print(f"{name:12} {inputs:7,} {codes.total():9,} {counts} {took:7.0f}", flush=True)
        report[name] = {"inputs": inputs, "codes": {str(code): count for code, count in sorted(codes.items())}}
    print(json.dumps({"fuzz": report, "seed": asked.seed}))


if __name__ == "__main__":
    main()
