"""What the exchange of dense gradients costs on a slow network: DDP, `sync` and `delayed` against no exchange at all.

    python -m tests.benchmarks.dense_sync [--quick] [--gbits 1 --gbits 0 …] [--results FILE]

Two gloo ranks, each in a network namespace of its own, joined by a veth pair that `tc tbf` shapes (slow_network.py);
each has one thread and one core. A step has the trainer's own parts, without tables (dense_sync_rank.py). The ideal
step takes as long as the longer one of computing alone and exchanging alone; the attainable one counts besides that the
exchange takes CPU time of the core that computes. --results keeps each point once it is
measured, and a later call measures only what is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click

from tests.benchmarks import harness
from tests.benchmarks.dense_sync_rank import (
    ALONE,
    DDP,
    DELAYED,
    DELAYED_BF16,
    EXCHANGE,
    EXCHANGE_BF16,
    RANKS,
    SYNC,
    Task,
    write_task,
)
from tests.benchmarks.slow_network import Host, slow_network, why_not

UNSHAPED = 0.0
PORT = 29_400
COMPUTE_SECONDS = 0.12  # what the batches below were chosen for
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Tower:
    """A square residual MLP; `batch` rows of a rank take about COMPUTE_SECONDS a step."""

    width: int
    layers: int
    batch: int

    @property
    def mb(self) -> float:
        """Millions of bytes of gradients."""
        return 4e-6 * (self.layers * (self.width**2 + 3 * self.width) + self.width + 1)


TOWERS = {2: Tower(248, 8, 2304), 10: Tower(552, 8, 512), 50: Tower(1248, 8, 64)}


@dataclass(frozen=True)
class Plan:
    """A point is a rate and a tower; of each, `rounds` rounds of `turn_seconds` a contestant, or so."""

    gbits: Sequence[float]
    towers: dict[int, Tower]
    rounds: int
    turn_seconds: float


FULL = Plan((UNSHAPED, 10.0, 1.0), TOWERS, rounds=5, turn_seconds=1.0)
QUICK = Plan((1.0,), {mb: TOWERS[mb] for mb in (2, 10)}, rounds=5, turn_seconds=0.5)
TINY = Plan((1.0,), {2: Tower(248, 8, 64)}, rounds=1, turn_seconds=0.05)


def measure(gbits: float, tower: Tower, plan: Plan) -> dict[str, Any]:
    """{"seconds": {contestant: of each round, the slower rank's}, "cpu": {…: a rank's mean}, "mb"}."""
    exchange = 8e-3 * tower.mb / gbits if gbits else 0.0
    steps = max(2, round(plan.turn_seconds / max(COMPUTE_SECONDS, exchange)))
    with slow_network(gbits or None) as hosts, TemporaryDirectory() as folder:
        task = Task(hosts[0].address, PORT, tower.width, tower.layers, tower.batch, plan.rounds, steps)
        write_task(Path(folder), task)
        run_ranks(hosts, Path(folder))
        ranks = [json.loads((Path(folder) / f"figures_{rank}.json").read_text()) for rank in range(RANKS)]
    rounds = {name: list(zip(*(rank[name] for rank in ranks), strict=True)) for name in ranks[0]}
    return {
        "mb": tower.mb,
        "seconds": {n: [max(seconds for seconds, _ in pair) for pair in pairs] for n, pairs in rounds.items()},
        "cpu": {n: [sum(cpu for _, cpu in pair) / RANKS for pair in pairs] for n, pairs in rounds.items()},
    }


def run_ranks(hosts: Sequence[Host], folder: Path) -> None:
    """One on each host; none is left behind. Raises RuntimeError where one fails."""
    ranks = [
        subprocess.Popen(
            host.command(
                [
                    *("/usr/bin/env", f"GLOO_SOCKET_IFNAME={host.interface}"),
                    *(sys.executable, "-m", "tests.benchmarks.dense_sync_rank", str(rank), str(folder)),
                ]
            ),
            stderr=(folder / f"errors_{rank}").open("w"),
        )
        for rank, host in enumerate(hosts)
    ]
    end = time.monotonic() + TIMEOUT_SECONDS
    try:
        while any(rank.poll() is None for rank in ranks):
            if any(rank.poll() for rank in ranks) or time.monotonic() > end:
                break
            time.sleep(0.05)
        if any(rank.poll() != 0 for rank in ranks):
            said = [(folder / f"errors_{i}").read_text()[-2000:] for i in range(len(ranks))]
            raise RuntimeError(f"a rank failed, or took over {TIMEOUT_SECONDS} s:\n" + "\n".join(said))
    finally:
        for rank in ranks:
            with suppress(ProcessLookupError):
                rank.kill()
            rank.wait()


def name_of(gbits: float) -> str:
    """For tables and keys."""
    return f"{gbits:g}gbit" if gbits else "unshaped"


def ideal(seconds: dict[str, list[float]], exchange: str) -> list[float]:
    """Of each round: the longer one of computing alone and exchanging alone."""
    return [max(pair) for pair in zip(seconds[ALONE], seconds[exchange], strict=True)]


def attainable(point: dict[str, Any]) -> list[float]:
    """Of each round: as `ideal`, but the exchange's own CPU time is on the core that computes."""
    seconds = point["seconds"]
    turns = zip(seconds[ALONE], point["cpu"][EXCHANGE], seconds[EXCHANGE], strict=True)
    return [max(alone + cpu, exchange) for alone, cpu, exchange in turns]


def hidden_share(seconds: dict[str, list[float]]) -> float:
    """Of the exchange, by `delayed`."""
    alone, exchange, delayed = (median(seconds[name]) for name in (ALONE, EXCHANGE, DELAYED))
    return 1 - (delayed - alone) / exchange


def report(gbits: float, points: dict[int, dict[str, Any]]) -> None:
    """A table of one rate: a line for each contestant, a column for each tower."""
    rows = []
    for name in (ALONE, EXCHANGE, EXCHANGE_BF16, DDP, SYNC, DELAYED, DELAYED_BF16):
        cells = []
        for point in points.values():
            seconds, cpu = point["seconds"], point["cpu"][name]
            cell = f"{harness.spread([1e3 * s for s in seconds[name]])} · {1e3 * median(cpu):,.0f}"
            if name in (EXCHANGE, EXCHANGE_BF16):
                mb = point["mb"] / (1 if name == EXCHANGE else 2)
                cell += f" · {8e-3 * mb / median(seconds[name]):.2g} Gbit/s"
            else:
                best = ideal(seconds, EXCHANGE_BF16 if name == DELAYED_BF16 else EXCHANGE)
                cell += f" · {harness.ratio(seconds[name], best):.2f}"
            cells.append(cell)
        rows.append([name, *cells])
    title = f"{name_of(gbits)}: ms a step · CPU ms a rank · rate reached, or ÷ ideal"
    harness.table([title, *(f"{mb} MB" for mb in points)], rows)


def ratios(points: dict[tuple[float, int], dict[str, Any]]) -> dict[str, float]:
    """Of all points measured."""
    found: dict[str, float] = {}
    over_ideal, over_attainable, over_ideal_bf16, over_ddp, sync_over_ddp, hidden = [], [], [], [], [], []
    for (gbits, mb), point in points.items():
        seconds = point["seconds"]
        over_ideal.append(harness.ratio(seconds[DELAYED], ideal(seconds, EXCHANGE)))
        over_attainable.append(harness.ratio(seconds[DELAYED], attainable(point)))
        over_ideal_bf16.append(harness.ratio(seconds[DELAYED_BF16], ideal(seconds, EXCHANGE_BF16)))
        over_ddp.append(harness.ratio(seconds[DELAYED], seconds[DDP]))
        sync_over_ddp.append(harness.ratio(seconds[SYNC], seconds[DDP]))
        found[f"delayed_over_ideal_{name_of(gbits)}_{mb}mb"] = over_ideal[-1]
        found[f"delayed_over_attainable_{name_of(gbits)}_{mb}mb"] = over_attainable[-1]
        found[f"delayed_over_ddp_{name_of(gbits)}_{mb}mb"] = over_ddp[-1]
        if gbits == 1.0 and median(seconds[EXCHANGE]) < median(seconds[ALONE]):
            hidden.append(hidden_share(seconds))
    if hidden:
        found["hidden_share_1gbit"] = min(hidden)
    return found | {
        "delayed_over_ideal_worst": max(over_ideal),
        "delayed_over_attainable_worst": max(over_attainable),
        "delayed_bf16_over_ideal_worst": max(over_ideal_bf16),
        "delayed_over_ddp_worst": max(over_ddp),
        "sync_over_ddp_worst": max(sync_over_ddp),
    }


def kept(results: Path | None) -> dict[tuple[float, int], dict[str, Any]]:
    """What earlier calls have measured."""
    if results is None or not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {(line["gbits"], line["tower"]): line["point"] for line in lines}


@click.command()
@click.option("--quick", is_flag=True, help="Ends within a minute on 2 cores.")
@click.option("--gbits", type=float, multiple=True, help="Only these rates; 0 is unshaped.")
@click.option("--mb", type=click.Choice([str(mb) for mb in TOWERS]), multiple=True, help="Only these towers.")
@click.option("--results", type=click.Path(dir_okay=False, path_type=Path), help="Keeps points; those in it stand.")
@click.option("--tiny", is_flag=True, hidden=True, help="For the tests.")
def main(quick: bool, gbits: tuple[float, ...], mb: tuple[str, ...], results: Path | None, tiny: bool) -> None:
    """Dense synchronisation on a slow network."""
    harness.prepare_process()
    reason = why_not()
    if reason:
        print(f"skipped: {reason}", flush=True)
        return
    plan = TINY if tiny else QUICK if quick else FULL
    points = kept(results)
    towers = {size: tower for size, tower in plan.towers.items() if not mb or str(size) in mb}
    for size, tower in towers.items():
        facts = {"width": tower.width, "layers": tower.layers, "rows of a rank": tower.batch, "MB": round(tower.mb, 2)}
        harness.show(f"tower of {size} MB", facts)
    harness.show("measured", {"ranks": RANKS, "rounds": plan.rounds, "seconds a turn": plan.turn_seconds})
    for rate in gbits or plan.gbits:
        for size, tower in towers.items():
            if (rate, size) not in points:
                point = points[rate, size] = measure(rate, tower, plan)
                if results is not None:
                    with results.open("a") as file:
                        print(json.dumps({"gbits": rate, "tower": size, "point": point}), file=file)
    for rate in dict.fromkeys(rate for rate, _ in points):
        report(rate, {size: point for (its, size), point in points.items() if its == rate})
    harness.finish("dense_sync", ratios(points), threads=1)


if __name__ == "__main__":
    main()
