"""Health of tables in whole runs: figures are those of the raw batches, on 1 and 2 ranks; nothing else changes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddings.config import Table
from embeddings.idmap import IdMapper
from embeddings.init import fill
from embeddings.specs import table_specs
from pipelines.batch import Batch
from pipelines.schema import MISSING_ID
from pipelines.segments import find_segments
from pipelines.stream import ThreadExecutor, batches
from pipelines.windows import Pass
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, differing, saved_tensors, tiny_config, train_all
from trainer.config import Config
from trainer.feed import newest_time

pytestmark = pytest.mark.timeout(300)  # all ranks start inside the first test
Tables = dict[str, dict[str, Any]]


def small_config(rows: Path, **sections: Any) -> Config:
    """With a managed table that is too small for its 13 users."""
    tables = tiny_config(rows).embeddings.tables | {"user_id": Table(rows=8, mapping="managed", buckets=2)}
    return tiny_config(rows, embeddings={"tables": tables}, **sections)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{run: its directory}. 8 steps, reported in pairs; the last one has a filler on two ranks."""
    folder = tmp_path_factory.mktemp("health")
    rows = write_segments(folder / "rows", {"2026-01-01": [14, 9], "2026-01-02": [11, 1]})

    def run(name: str, every: int, resume: Any = "never", steps: int = 0, log_every: int = 2) -> Run:
        sections = {"train": {"log_every": log_every, "max_steps": steps}, "telemetry": {"tables_every": every}}
        return Run(small_config(rows, **sections), folder / "runs" / name, resume)

    two = [
        run("two", 1),
        run("off", 0),
        run("first", 1, steps=1),
        run("sparse", 3, steps=7, log_every=1),
        run("stopped", 1, steps=4),
        run("stopped", 1, "must"),
    ]
    train_all(two, 2)
    train_all([run("one", 1)], 1)
    return {name: folder / "runs" / name for name in ("one", "two", "off", "first", "sparse", "stopped")}


def tables_of(run: Path) -> dict[int, Tables]:
    """{step: the tables' figures, in the lines that have some}."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all("tables" not in line for line in lines if line["kind"] != "train")
    return {line["step"]: line["tables"] for line in lines if "tables" in line}


def config_of(runs: dict[str, Path]) -> Config:
    return small_config(next(iter(runs.values())).parents[1] / "rows")


def raw_batches(config: Config) -> list[Batch]:
    pass_ = Pass(config.schema, config.data, find_segments(config.data).train, config.train.seed)
    with batches(pass_, 1, 0, None, ThreadExecutor()) as stream:
        return list(stream)


def by_hand(config: Config, steps: list[Batch]) -> list[Tables]:
    """Of each step, the sums that figures are made of, counted value by value over the batch's columns."""
    specs = table_specs(config.schema, config.embeddings)
    mapper = IdMapper(specs)
    initial = {name: torch.empty(spec.rows, spec.width) for name, spec in specs.items()}
    for name, spec in specs.items():
        fill(initial[name], spec, config.train.seed)
    found = []
    for batch in steps:
        seen: dict[str, Counter[int]] = {name: Counter() for name in specs}
        for field in batch.fields.values():
            seen[field.table].update(batch.tables[field.table].ids[field.inverse].tolist())
        rows = mapper.rows_of(batch.tables, train=True, now=newest_time(batch))
        step = {}
        for name, count in seen.items():
            row_of = dict(zip(batch.tables[name].ids.tolist(), rows[name].tolist(), strict=True))
            del count[MISSING_ID]
            sharing = Counter(row_of[value] for value in count)
            norms = initial[name].norm(dim=1)
            step[name] = {
                "occurrences": count.total(),
                "ids": len(count),
                "hottest": max(count.values(), default=0),
                "unknown": sum(n for value, n in count.items() if row_of[value] == 1),
                "colliding": sum(sharing[row_of[value]] > 1 for value in count),
                "norms": sum(n * float(norms[row_of[value]]) for value, n in count.items()),
                "norm_max": max((float(norms[row_of[value]]) for value in count), default=0.0),
                "fill": mapper.used_rows().get(name, 0) / specs[name].rows,
                "flow": mapper.flows().get(name),
            }
        found.append(step)
    return found


@pytest.mark.parametrize("run", ["one", "two"])
def test_figures_are_those_of_the_raw_batches(trained: dict[str, Path], run: str) -> None:
    config = config_of(trained)
    counted = by_hand(config, raw_batches(config))
    reported = tables_of(trained[run])
    assert list(reported) == [2, 4, 6, 8]
    for end, tables in reported.items():
        assert tables.keys() == counted[0].keys()
        for name, figures in tables.items():
            pair = [counted[step][name] for step in (end - 2, end - 1)]
            total = {key: sum(each[key] for each in pair) for key in pair[0] if key != "flow"}
            shares = {
                "unique_share": total["ids"] / total["occurrences"],
                "hottest_share": total["hottest"] / total["occurrences"],
                "unknown_rate": total["unknown"] / total["occurrences"],
            }
            if name in ("item", "user_id"):
                shares["fill"] = pair[1]["fill"]
                before = counted[end - 3][name]["flow"] if end > 2 else (0, 0)
                admissions, evictions = np.subtract(pair[1]["flow"], before)
                assert (figures["admissions"], figures["evictions"]) == (admissions, evictions)
                assert figures["collision_rate"] is None
            elif name != "age":
                shares["collision_rate"] = total["colliding"] / total["ids"]
            for key, value in shares.items():
                assert figures[key] == pytest.approx(value, rel=1e-3), (end, name, key)
    assert reported[8]["words"]["collision_rate"] > 0
    assert reported[2]["item"]["admissions"] > 20
    assert reported[8]["user_id"]["evictions"] > 0


def test_only_sampled_steps_count_and_a_report_without_one_has_none(trained: dict[str, Path]) -> None:
    config = config_of(trained)
    counted = by_hand(config, raw_batches(config))
    told = tables_of(trained["sparse"])
    assert list(told) == [3, 6]
    for step, tables in told.items():
        for name, figures in tables.items():
            expected = counted[step - 1][name]
            assert figures["unique_share"] == pytest.approx(expected["ids"] / expected["occurrences"], rel=1e-3)


def test_norms_are_those_of_the_rows_as_the_step_looked_them_up(trained: dict[str, Path]) -> None:
    """In the first step they are initial values."""
    config = config_of(trained)
    [first] = by_hand(config, raw_batches(config)[:1])
    for name, figures in tables_of(trained["first"])[1].items():
        assert figures["row_norm"] == pytest.approx(first[name]["norms"] / first[name]["occurrences"], rel=1e-3)
        assert figures["row_norm_max"] == pytest.approx(first[name]["norm_max"], rel=1e-3)


def test_never_touched_rows_are_those_whose_optimizer_state_is_zero(trained: dict[str, Path]) -> None:
    tensors = saved_tensors(trained["two"])
    for name, figures in tables_of(trained["two"])[8].items():
        [state] = [value for key, value in tensors.items() if key.startswith(f"tables/{name}/m")]
        assert figures["never_touched_share"] == pytest.approx(float((state == 0).all(1).double().mean()), rel=1e-3)


def test_one_and_two_ranks_tell_the_same(trained: dict[str, Path]) -> None:
    one, two = tables_of(trained["one"]), tables_of(trained["two"])
    for step, tables in one.items():
        for name, figures in tables.items():
            for key, value in figures.items():
                expected = two[step][name][key]
                assert (value == expected) or value == pytest.approx(expected, rel=1e-3), (step, name, key)


def test_training_is_the_same_with_and_without(trained: dict[str, Path]) -> None:
    assert tables_of(trained["off"]) == {}
    assert differing(saved_tensors(trained["two"]), saved_tensors(trained["off"])) == []


def test_a_resumed_run_tells_what_it_would_have_told(trained: dict[str, Path]) -> None:
    assert tables_of(trained["stopped"]) == tables_of(trained["two"])
