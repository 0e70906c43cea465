"""The plan verb: what it counts from real batches, what it estimates, and what it says when a plan does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from embeddings.config import Embeddings, Table
from embeddings.specs import table_specs
from pipelines.reading import BY_LENGTH
from pipelines.schema import INPUT_ROLES, TABLE_KINDS
from pipelines.segments import find_segments
from pipelines.stream import ThreadExecutor, batches
from pipelines.windows import Pass
from tests.pipelines.rows import write_segments
from tests.trainer.runs import tiny_config
from tests.trainer.wide_rows import wide_config
from trainer.cli import cli
from trainer.config import Config, dump_config
from trainer.errors import ConfigError
from trainer.hardware import PRESETS
from trainer.plan_ids import find_work
from trainer.plan_verb import PlanOptions, make, options_of

MIB = 1 << 20


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Its rows are there."""
    folder = tmp_path_factory.mktemp("plan")
    return tiny_config(write_segments(folder / "rows", {"2026-01-01": [14, 9], "2026-01-02": [11, 1]}))


@pytest.fixture
def run_file(config: Config, tmp_path: Path) -> str:
    path = tmp_path / "run.toml"
    path.write_text(dump_config(config))
    return str(path)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_unique_ids_are_those_of_the_batches_that_training_reads(config: Config, world_size: int) -> None:
    """Against the trainer's own stream, for each rank, over the same 3 batches."""
    specs = table_specs(config.schema, config.embeddings)
    work = find_work(config, specs, world_size, BY_LENGTH)
    assert work.ids.measured
    assert "measured on 3 global batch(es), 15 rows, of segment 2026-01-01" in work.ids.source
    data = config.data.model_copy(update={"window_batches": 3})
    pass_ = Pass(config.schema, data, find_segments(data).train[:1], config.train.seed)
    asked = {name: [] for name in specs}
    distinct = {name: [set() for _ in range(3)] for name in specs}
    for rank in range(world_size):
        with batches(pass_, world_size, rank, None, ThreadExecutor()) as stream:
            for number in range(3):
                batch = next(stream)
                for name in specs:
                    asked[name].append(len(batch.tables[name].ids))
                    distinct[name][number] |= set(batch.tables[name].ids.tolist())
    for name, spec in specs.items():
        assert work.ids.asked[name] == pytest.approx(min(np.mean(asked[name]), spec.rows)), name
        counts = [len(ids) for ids in distinct[name]]
        assert work.ids.distinct[name] == pytest.approx(min(np.mean(counts), spec.rows)), name
    assert work.rows == 5
    assert 0 < work.length**2 <= work.length_squared


def test_without_data_it_is_assumed_and_said(config: Config) -> None:
    nowhere = replace(config, data=config.data.model_copy(update={"rows": "nowhere/rows"}))
    planned = make(nowhere, PlanOptions(2))
    assert not planned.tables.step_ids.measured
    assert any("assumed" in line and "there are no rows at nowhere/rows" in line for line in planned.lines())
    measured = make(config, PlanOptions(2))
    assert measured.tables.placement == planned.tables.placement, "the choice rests on the run file alone"


def test_an_estimate_is_called_one_and_follows_the_hardware(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    options = PlanOptions(8, "cuda", local_world_size=8)
    before = make(config, options).time
    assert before.least == before.parts[before.bottleneck] <= before.most == sum(before.parts.values())
    halved = replace(PRESETS["h100"], flops=PRESETS["h100"].flops / 2, memory_bandwidth=3.35e12 / 2)
    monkeypatch.setitem(PRESETS, "h100", halved)
    after = make(config, options).time
    for part, seconds in after.parts.items():
        times = 2 if part in ("tower", "lookup and update") else 1
        assert seconds == pytest.approx(times * before.parts[part]), part
    estimates = [line for line in make(config, options).lines() if line.startswith(("step", "rows  ", "readers"))]
    assert len(estimates) == 3
    assert all("ESTIMATE" in line for line in estimates)
    spread = make(config, replace(options, local_world_size=2)).time
    assert spread.parts["exchange of rows"] > after.parts["exchange of rows"], "to other hosts it is slower"


def test_copies_cost_memory_and_save_exchange(config: Config) -> None:
    plain = {name: Table(rows=500_000, sharding="row_wise") for name in ("item", "words", "tags")}
    wide = replace(config, embeddings=Embeddings(width=8, default_rows=64, tables=plain))
    copies = replace(wide, embeddings=wide.embeddings.model_copy(update={"replicas": 4, "replica_sync_steps": 10}))
    one, four = make(wide, PlanOptions(8)), make(copies, PlanOptions(8))
    assert max(four.tables.bytes) == pytest.approx(4 * max(one.tables.bytes), rel=0.01)
    assert four.tables.load.busiest.max() < one.tables.load.busiest.max()
    assert "averaging copies" in four.time.parts
    assert "averaging copies" not in one.time.parts


def test_every_preset_names_its_sources_and_has_sound_figures() -> None:
    for name, hardware in PRESETS.items():
        assert len(hardware.sources) >= 2, name
        figures = [value for value in vars(hardware).values() if isinstance(value, float | int)]
        assert all(value > 0 for value in figures), name
        assert hardware.network <= hardware.link <= hardware.memory_bandwidth, name
        assert hardware.device in ("cpu", "cuda")


def test_sizes_and_names_that_make_no_sense_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        options_of(2, "cuda", "lots", None, "80 apples", "tpu")
    assert len(caught.value.problems) == 3
    assert "presets are h100, h200, a100, l4, cpu" in caught.value.problems[0]
    assert options_of(2, "cuda", "80GB", 8, "1TB", None) == PlanOptions(2, "cuda", 80 * 10**9, 8, 10**12)


def _invoke(*arguments: str) -> tuple[str, Exception | None]:
    done = CliRunner().invoke(cli, ["plan", *arguments])
    return done.stdout, done.exception if isinstance(done.exception, Exception) else None


def test_a_plan_is_saved_given_back_and_refused_elsewhere(run_file: str, tmp_path: Path) -> None:
    saved = str(tmp_path / "plan.json")
    base = ["--config", run_file, "--device", "cuda", "--local-world-size", "2"]
    text, _ = _invoke(*base, "--world-size", "4", "--save", saved, "--hbm", "80GB")
    printed, _ = _invoke(*base, "--world-size", "4", "--json", "--plan", saved)
    told = json.loads(printed)
    first = json.loads(Path(saved).read_text())
    assert told["tables"] == first["tables"]
    assert told["fits"] is True
    assert told["estimate"]["hardware"]["name"] == "NVIDIA H100 SXM"
    assert {"device", "host", "lookup", "rows_sent", "gradients_sent"} <= told["load"].keys()
    assert len(told["load"]["device"]) == 4
    for name in ("item", "words", "tags"):
        assert f"\n{name} " in text
    _, refused = _invoke(*base, "--world-size", "2", "--plan", saved)
    assert "is for 4 ranks in 1 group(s), this run has 2 in 1" in str(refused)


def test_what_does_not_fit_is_shown_with_the_plan(run_file: str) -> None:
    """The dense part has its own share of the memory."""
    base = ["--config", run_file, "--world-size", "2", "--device", "cuda"]
    large = ["--embeddings.tables.words.rows", "1000000", "--hbm", "12MiB"]
    text, refused = _invoke(*base, *large)
    assert "words" in text, "the plan comes before the refusal"
    assert type(refused).__name__ == "PlanDoesNotFitError"
    (line,) = refused.problems  # type: ignore[union-attr]
    for part in ("rank 0", "too much (words 17.2 MiB", "dtype = 'fp16' for words frees 7.6 MiB a rank, enough",
                 "kernel = 'fused_uvm_caching' for words frees", "words rows = ", "at least 3 ranks"):  # fmt: skip
        assert part in line
    dense = make(_loaded(run_file), PlanOptions(2)).dense_bytes
    told, _ = _invoke(*base, *large, "--json")
    assert json.loads(told)["fits"] is False
    limit = 12 * MIB - dense
    assert f"of {limit / MIB:.1f} MiB" in line


def _loaded(run_file: str) -> Config:
    from trainer.config import load_config

    return load_config(run_file)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("table_row_wise", "row_wise"), ("data_parallel", "table_wise"), ("grid_shard", "column_wise"),
     ("table_column_wise", "column_wise"), ("row-wise", "row_wise"), ("nonsense", "auto")],
)  # fmt: skip
def test_a_sharding_type_that_there_is_not_is_refused_with_the_nearest(run_file: str, asked: str, nearest: str) -> None:
    for key in ("embeddings.tables.words.sharding", "embeddings.sharding"):
        _, refused = _invoke("--config", run_file, "--world-size", "2", f"--{key}", asked)
        (line,) = refused.problems  # type: ignore[union-attr]
        assert line.startswith(f"{key} = '{asked}' → unpooled tables are table_wise, column_wise or row_wise")
        assert f"the nearest is '{nearest}'" in line


def test_what_copies_cannot_hold_is_refused(run_file: str) -> None:
    _, refused = _invoke("--config", run_file, "--world-size", "2", "--embeddings.replicas", "2")
    (line,) = refused.problems  # type: ignore[union-attr]
    assert line.startswith("table 'item': mapping = 'vocabulary' with embeddings.replicas = 2")


def test_2000_fields_are_told_in_a_page_with_what_they_cost_a_row(tmp_path: Path) -> None:
    """By hand: a row reads one vector of each id column, and a token multiplies its inputs by dim."""
    wide = wide_config(tmp_path / "nowhere", 2000)
    planned = make(wide, PlanOptions(2))
    text = planned.lines()
    assert len(text) < 120
    assert sum(" … x" in line for line in text) == 32
    fields = planned.to_json()["fields"]
    assert len(fields["tokens"]) == 32
    names = [name for token in fields["tokens"] for name in token["fields"]]
    assert names == [name for name, c in wide.schema.static().items() if c.role in INPUT_ROLES and c.kind != "time"]
    specs = table_specs(wide.schema, wide.embeddings)
    widths = {"dense": 1}
    own = [wide.schema.columns[name] for name in names]
    total = sum(
        column.size or widths.get(column.kind) or specs[name].width for name, column in zip(names, own, strict=True)
    )
    assert fields["multiplications_per_row"]["projections"] == wide.model.dim * total
    looked_up = [name for name, column in zip(names, own, strict=True) if column.kind in TABLE_KINDS]
    # Columns of ids: three of views (2 events), one of buys and of saves (1.5 each), two of 8 candidates.
    assert fields["looked_up_per_row"] == pytest.approx(len(looked_up) + 2 * 3 + 1.5 + 1.5 + 8 * 2)
    assert fields["bytes_read_per_row"] == sum(4 * specs[name].width for name in looked_up) + 4 * 8 * 25


def test_fields_that_are_tokens_of_their_own_are_told_in_two_lines(config: Config) -> None:
    text = make(config, PlanOptions(2)).lines()
    assert not any(line.startswith("token ") for line in text)
    assert [line.split()[0] for line in text if "static field" in line or "from fields to tokens" in line] == [
        "fields",
        "a",
    ]
