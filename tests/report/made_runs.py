"""Run directories as `train` leaves them, written in milliseconds: with all that a page may show."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from trainer.config import dump_config, load_config

QUICK = Path(__file__).parents[2] / "trainer" / "configs" / "quick.toml"
BORN = 1_795_000_000.0
PARTS = {
    "data_wait": 0.001,
    "host_to_device": 0.0006,
    "id_exchange": 0.003,
    "lookup": 0.006,
    "forward": 0.021,
    "backward": 0.028,
    "exposed_communication": 0.002,
    "optimizer": 0.0015,
    "telemetry": 0.002,
    "other": 0.0007,
}
TABLES = ("user_id", "item_id", "author", "category")


def write_run(
    folder: Path,
    lines: int = 120,
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    tasks: tuple[str, ...] = ("click", "purchase"),
    split: str = "2026-11-15",
) -> Path:
    """A run of `lines` train lines, twenty steps each, stopped and resumed halfway. tasks, split: any words."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(dump_config(load_config(QUICK, list(overrides))), encoding="utf-8")
    (folder / "env.json").write_text(json.dumps(environment() | {"overrides": list(overrides)}), encoding="utf-8")
    (folder / "plan.json").write_text(json.dumps(plan()), encoding="utf-8")
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in metrics(lines, seed, tasks, split))
    (folder / "train.log").write_text(
        "2026-11-20 12:00:00,100 INFO trainer.worker: reading by threads\n"
        f"2026-11-20 12:01:00,100 INFO trainer.telemetry.telemetry: step {20 * (lines // 3)} · 1.9 k ex/s · loss .5\n"
        f"2026-11-20 12:01:00,200 WARNING trainer.telemetry.tables: step {20 * (lines // 3)}: table 'item_id' has 91 % "
        "of its rows in use → ids that come when it is full get the unknown row → more rows\n"
        "Traceback (most recent call last):\n",
        encoding="utf-8",
    )
    return folder


def metrics(lines: int, seed: int, tasks: tuple[str, ...], split: str) -> list[dict[str, Any]]:
    """All kinds of lines, in the order of a run."""
    chance = random.Random(seed)
    found: list[dict[str, Any]] = []
    pause = 0.0
    for number in range(1, lines + 1):
        done, step = number / lines, 20 * number
        if number == lines // 2:
            pause = 1800.0
            found.append(_line(step - 20, pause, "event", event="resumed", checkpoint="step_00001180", dropped_lines=2))
        found.append(train_line(number, lines, pause, chance, tasks))
        if number % 20 == 0:
            values = {"path": f"step_{step:08d}", "bytes": 48_000_000, "seconds": 1.2, "stall_seconds": 0.02}
            found.append(_line(step, pause + 0.5, "checkpoint", **values, checkpoint_kind="full"))
        if number % 30 == 0 or number == lines:
            found.append(eval_line(step, done, pause, chance, tasks, split))
        if number == 2 * lines // 3:
            found.append(_line(step, pause, "event", event="loss_spike", loss=3.2, batches="spikes/step_00001600"))
        if number % 60 == 0:
            ended = {task: scores(done, chance) for task in tasks}
            found.append(
                _line(step, pause, "event", event="segment", segment=f"2026-11-{13 + number // 60}", tasks=ended)
            )
    return found


def train_line(number: int, lines: int, pause: float, chance: random.Random, tasks: tuple[str, ...]) -> dict[str, Any]:
    done, slow = number / lines, 1.0 + 2.0 * (number == 1)
    split = {name: slow * part * (1 + 0.2 * chance.random()) for name, part in PARTS.items()}
    step_seconds = sum(split.values())
    line = {
        "loss": 0.55 - 0.1 * done**0.3 + 0.02 * chance.random() + 2.4 * (number == 2 * lines // 3),
        "examples_per_second": 145 / step_seconds,
        "rows_per_second": 32 / step_seconds,
        "step_seconds": step_seconds,
        "data_wait_seconds": split["data_wait"],
        "grad_norm": 0.3 + 0.3 * math.exp(-9 * done) + 0.05 * chance.random(),
        "learning_rate": 0.004 * min(1.0, 12 * done),
        "rows": 640 * number,
        "epoch": 0,
        "segment": f"2026-11-{13 + number // 60}",
        "data_through": int(1e6 * (BORN + 86400 * 2 * done)),
        "bad_steps": int(number >= 2 * lines // 3),
        "quarantined_rows": 0,
        "flops_per_second": 2.1e10 / step_seconds,
        "mfu": 0.31 + 0.02 * chance.random(),
        "tokens_per_second": 9_000 / step_seconds,
        "unlabelled_steps": 0,
        "ready_batches": 2 + number % 2,
        "goodput": {
            "share": 0.9 * done**0.2,
            "lost_seconds": {"start_up": 8.0, "evaluation": 9 * done, "down": 30.0 * (pause > 0), "bad_steps": 0.0},
        },
        "system": {
            "process_resident_bytes": 2.1e9 + 3e8 * done,
            "host_memory_bytes": 3.2e10,
            "disk_free_bytes": 4e11,
        },
        "queues": {"read": {"depth": 2 + chance.random()}, "write": {"depth": 1.0}},
        "slices": {"by": "country", "values": {value: {tasks[0]: scores(done, chance)} for value in ("3", "17")}},
        "step_split": split,
        "tasks": {task: scores(done, chance) for task in tasks},
        "lifetime": {task: scores(done, chance, 0.0) for task in tasks},
    }
    if number % 5 == 0:
        line["tables"] = {table: health(place, done) for place, table in enumerate(TABLES)}
    return _line(20 * number, pause, "train", **line)


def eval_line(
    step: int, done: float, pause: float, chance: random.Random, tasks: tuple[str, ...], split: str
) -> dict[str, Any]:
    found = {
        task: scores(done, chance) | {"gauc": 0.55 + 0.03 * place + 0.1 * done**0.5, "gauc_users": 253}
        for place, task in enumerate(tasks)
    }
    layers = {"sequence": [17.6, 10.1, 11.0, 11.1, 11.2], "field": [19.4, 11.0, 12.2, 11.9, 12.0]}
    collapse = {
        "rows": 64,
        "dim": 64,
        "effective_rank": {kind: [rank * (1 + 0.2 * done) for rank in ranks] for kind, ranks in layers.items()},
        "attention": {"sequence": {"field": [0.24, 0.4, 0.32, None]}},
        "even_attention": {"sequence": {"field": [0.34, 0.34, 0.34, None]}},
    }
    slices = {"by": "country", "values": {"3": {tasks[0]: found[tasks[0]]}}, "others": 0}
    return _line(
        step, pause + 1, "eval", split=split, rows=1783, seconds=3.1, tasks=found, collapse=collapse, slices=slices
    )


def scores(done: float, chance: random.Random, noise: float = 0.02) -> dict[str, Any]:
    return {
        "ne": 1.02 - 0.12 * done**0.4 + noise * chance.random(),
        "auc": 0.52 + 0.2 * done**0.4 + noise * chance.random(),
        "calibration": 1 + 0.1 * (1 - done) + noise * chance.random(),
        "loss": 0.56 - 0.1 * done**0.4,
        "examples": 2900,
    }


def health(place: int, done: float) -> dict[str, Any]:
    return {
        "unique_share": 0.2 + 0.1 * place,
        "hottest_share": 0.04,
        "unknown_rate": 0.02 * place * done,
        "collision_rate": 0.0,
        "admissions": None,
        "evictions": None,
        "fill": min(0.91, done * (1 + place) / 4) if place < 2 else None,
        "row_norm": 0.4,
        "row_norm_max": 1 + done,
        "never_touched_share": 1 - 0.8 * done,
    }


def plan() -> dict[str, Any]:
    tables = [
        {
            "name": name,
            "rows": 10_000 * (place + 1),
            "width": 16,
            "sharding": "row_wise" if place % 2 else "table_wise",
            "kernel": "fused",
            "dtype": "fp32",
            "optimizer": "rowwise_adagrad",
            "mapping": "hash",
            "ranks": [0, 1],
            "weight_bytes": [320_000, 320_000],
            "optimizer_bytes": [40_000, 40_000],
            "unique_ids_per_rank": 32.0,
        }
        for place, name in enumerate(TABLES)
    ]
    return {"format": 1, "world_size": 2, "tables": tables, "balance": {"memory": 1.0, "lookup": 1.03, "exchange": 1.0}}


def environment() -> dict[str, Any]:
    versions = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0", "ray": "2.60.0", "pyarrow": "26.0.1"}
    return {"python": "3.11.7", "versions": versions, "cpu": "A CPU", "cores": 2, "memory_bytes": 2**34, "gpus": 0}


def _line(step: int, pause: float, kind: str, **values: Any) -> dict[str, Any]:
    return {"time": BORN + step * 0.065 + pause, "kind": kind, "step": step, "examples": 145 * step, **values}
