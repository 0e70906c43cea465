"""`python -m tests.chaos --sequences N --seed S [--out D]`: random faults against real runs, each run judged at its
end.

Sequence i has the seed S + i, and nothing else decides what happens in it: `--sequences 1 --seed X` plays one again.
With --out, results.jsonl keeps a line for each; those that survived are not played again, so that a long session may
be cut into pieces. The folder of one that failed stays in D/seed-X, with what every rank said.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

import click

from tests.benchmarks.harness import table
from tests.chaos.bucket import Bucket, bucket
from tests.chaos.play import CHEAP, draw, play, run_unhurt
from tests.chaos.results import HEADER, Results, closing, rows_of
from tests.chaos.scene import can_mount


@click.command()
@click.option("--sequences", default=5, show_default=True, help="So many.")
@click.option("--seed", default=0, show_default=True, help="Of the first; the others follow it.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of results.jsonl and of what failed.")
@click.option(
    "--cheap", is_flag=True, help="Only faults that cost little time, one or two on one or two workers: what CI plays."
)
@click.option("--minutes", default=0.0, help="Begin no sequence after so many.")
def main(sequences: int, seed: int, out: Path | None, cheap: bool, minutes: float) -> None:
    """Play sequences of faults; exit code 1 if anything was lost or repeated."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # takes ranks and file systems along
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch, ExitStack() as stack:
        open_bucket = lru_cache(maxsize=1)(lambda: stack.enter_context(bucket()))
        if not played((out or Path(scratch)).absolute(), open_bucket, sequences, seed, cheap, minutes):
            raise SystemExit(1)


def played(
    out: Path, open_bucket: Callable[[], Bucket], sequences: int, seed: int, cheap: bool, minutes: float
) -> bool:
    """Whether all of these sequences survived. Prints a line for each, a table and a JSON line."""
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "results.jsonl")
    reference = lru_cache(maxsize=None)(lambda workers: run_unhurt(out / f"unhurt-{workers}", workers))
    if not can_mount():
        print("file systems cannot be made here: faults that need one are left out", flush=True)
    began = time.monotonic()
    for each in range(seed, seed + sequences):
        if results.has(each):
            continue
        if minutes and time.monotonic() - began > 60 * minutes:
            break
        plan = draw(each, CHEAP, most_workers=2, most_faults=2) if cheap else draw(each)
        outcome = play(plan, out / f"seed-{each}", reference, open_bucket)
        results.add(outcome.to_json())
        came = ", then ".join(f"{met.name} ({met.details}; {met.workers} workers)" for met in outcome.met if met.came)
        word = "FAILED" if outcome.problems else "survived"
        print(f"seed {each} {word} in {outcome.seconds:.1f} s: {came}; {plan.last_workers} to the end", flush=True)
        for problem in outcome.problems:
            print(f"    {problem}", flush=True)
    mine = [found for found in results.all if seed <= found["seed"] < seed + sequences]
    print()
    table(HEADER, rows_of(mine))
    print(json.dumps(closing(mine)))
    return not any(found["outcome"] == "failed" for found in mine)


if __name__ == "__main__":
    main()
