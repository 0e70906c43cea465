"""A model that begins with another's, trained on two ranks under every sharding: unchanged, with other tables, fields
and tasks, on other ranks, and in parts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embeddings.config import Table
from embeddings.init import fill
from embeddings.specs import table_specs
from pipelines.schema import MISSING_ID, Schema
from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import COLUMNS, TASKS, make_schema, write_segments
from tests.trainer.runs import Run, newest_state, saved_tensors, tiny_config, train_all
from trainer.assembly import build_dense
from trainer.config import Config, dump_config, load_config
from trainer.config_sections import Checkpoint, Init
from trainer.errors import CheckpointError, ConfigError
from trainer.layout import make_layout
from trainer.run_dir import RunDir

Tensors = dict[str, torch.Tensor]
TABLES = {
    "item": Table(rows=256, mapping="vocabulary", buckets=8),
    "words": Table(rows=97, sharding="row_wise"),
    "tags": Table(rows=50, sharding="table_wise"),
    "slot": Table(rows=40, mapping="identity", sharding="column_wise"),
    "v_click": Table(rows=4, mapping="identity"),
}
RANKER = "dense/scorer.ranker."


def schema(without: tuple[str, ...] = (), tasks: tuple[str, ...] = ("click", "order")) -> Schema:
    columns = {name: column for name, column in COLUMNS.items() if name not in without}
    return make_schema(columns=columns, tasks={name: TASKS[name] for name in tasks})


@dataclass(frozen=True)
class Begun:
    """tensors: whole. lines: what the user was told."""

    tensors: Tensors
    lines: list[str]
    state: Any
    metrics: Any
    error: list[str]


def _begin(rank: int, world_size: int, cases: dict[str, tuple[Config, Path]]) -> dict[str, Any]:
    from trainer.assembly import assemble
    from trainer.checkpoint.checkpointer import Checkpointer
    from trainer.init_from import begin
    from trainer.model_state import model_tensors
    from trainer.runtime import start

    found: dict[str, Any] = {}
    with start(60.0, 1) as runtime:
        for name, (config, path) in cases.items():
            assembly = assemble(config, runtime)
            try:
                checkpointer = Checkpointer(RunDir("nowhere"), Checkpoint(), runtime.control)
                begun = begin(config, assembly, checkpointer, path)
            except CheckpointError as error:
                found[name] = error.problems
                continue
            boxes = {
                n: (held.size, [(c.offsets, c.tensor.clone()) for c in held.chunks])
                for n, held in model_tensors(assembly).items()
            }
            found[name] = (boxes, begun.account.lines(), begun.state, begun.metrics)
    return found


def begun_as(cases: dict[str, tuple[Config, Path]], world_size: int) -> dict[str, Begun]:
    """Each case begun on that many ranks."""
    of_ranks = run_ranks(_begin, world_size, cases, timeout=150)
    found = {}
    for name in cases:
        first = of_ranks[0][name]
        if isinstance(first, list):
            assert all(of_rank[name] == first for of_rank in of_ranks)
            found[name] = Begun({}, [], None, None, first)
            continue
        tensors: Tensors = {}
        for of_rank in of_ranks:
            for tensor, (size, boxes) in of_rank[name][0].items():
                for offsets, values in boxes:
                    whole = tensors.setdefault(tensor, torch.zeros(size, dtype=values.dtype))
                    whole[tuple(slice(o, o + n) for o, n in zip(offsets, values.shape, strict=True))] = values
        found[name] = Begun(tensors, *first[1:], [])
    return found


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained without the field `late` and the task `order`."""
    folder = tmp_path_factory.mktemp("parent")
    write_segments(folder / "rows", {"2026-01-01": [14, 9]})
    config = replace(config_of(folder), schema=schema(without=("late",), tasks=("click",)))
    train_all([Run(config, folder / "run")], 2)
    return folder / "run"


def config_of(folder: Path, **sections: Any) -> Config:
    embeddings = {"tables": TABLES} | sections.pop("embeddings", {})
    return tiny_config(folder / "rows", embeddings=embeddings, **sections)


@pytest.fixture(scope="module")
def begun(parent: Path) -> dict[str, Begun]:
    path = RunDir(parent).require_latest()
    same = replace(
        config_of(parent.parent),
        schema=schema(without=("late",), tasks=("click",)),
        init=Init(run=f"{parent}/"),
    )
    tables = TABLES | {
        "item": Table(rows=512, width=12, mapping="vocabulary", buckets=8),
        "slot": Table(rows=60, width=16, mapping="identity"),
        "words": Table(rows=120),
        "tags": Table(rows=50, mapping="identity"),
        "v_click": Table(rows=4, mapping="identity", dtype="fp16", optimizer="adagrad"),
    }
    grown = replace(config_of(parent.parent, embeddings={"tables": tables}), schema=schema(without=("score",)))
    tables = TABLES | {"item": Table(rows=48, width=4, mapping="vocabulary", buckets=3), "slot": Table(rows=20)}
    dealt = config_of(parent.parent, embeddings={"tables": tables, "optimizer": "adagrad"})
    only_rows = replace(
        same,
        init=Init(
            tables_optimizer=False, tower=False, tower_optimizer=False, examples=False, steps=False, metrics=False,
            lineage=False,
        ),
    )  # fmt: skip
    only_tower = replace(same, init=Init(tables=False, tables_optimizer=False, id_maps=False))
    cases = {name: (config, path) for name, config in locals().items() if isinstance(config, Config)}
    return begun_as({"same": cases["same"]}, 3) | begun_as(cases, 1)


def config_dense(config: Config) -> Tensors:
    """The tower as it is initialised."""
    layout = make_layout(config.schema, table_specs(config.schema, config.embeddings))
    return {f"{RANKER}{name}": tensor for name, tensor in build_dense(config, layout).state_dict().items()}


def initial(config: Config, table: str) -> torch.Tensor:
    spec = table_specs(config.schema, config.embeddings)[table]
    rows = torch.empty(spec.rows, spec.width)
    fill(rows, spec, config.train.seed)
    return rows


def test_the_same_model_is_carried_whole_to_other_ranks(parent: Path, begun: dict[str, Begun]) -> None:
    saved, found = saved_tensors(parent), begun["same"]
    assert saved.keys() == found.tensors.keys()
    reshaped = "tables/slot/momentum1"  # [rows, column shards]: by the rule of row_states
    assert [n for n in saved if n != reshaped and not torch.equal(saved[n], found.tensors[n])] == []
    state = newest_state(parent)
    assert (found.state.step, found.state.examples, found.state.rows) == (state.step, state.examples, state.rows)
    assert found.state.position is None
    assert found.state.lineage == (f"{parent}/step_{state.step:08d}",)
    assert found.metrics == state.extra["metrics"]
    assert not [line for line in found.lines if "initialised" in line or "switched off" in line or "dropped" in line]


def test_tables_that_grew_keep_their_ids_rows(parent: Path, begun: dict[str, Begun]) -> None:
    saved, found = saved_tensors(parent), begun["grown"]
    ids = saved["id_maps/item/ids"]
    assert (ids != MISSING_ID).sum() > 20
    grown = found.tensors["id_maps/item/ids"]
    assert torch.equal(grown[:, :32], ids)
    assert (grown[:, 32:] == MISSING_ID).all()
    assert torch.equal(found.tensors["id_maps/item/used"], saved["id_maps/item/used"])
    rows = found.tensors["tables/item/weight"].view(8, 64, 12)
    assert torch.equal(rows[:, :32, :8], saved["tables/item/weight"].view(8, 32, 8))
    assert torch.equal(rows[:, 32:], initial(grown_config(parent), "item").view(8, 64, 12)[:, 32:])
    assert torch.equal(rows[:, :, 8:], initial(grown_config(parent), "item").view(8, 64, 12)[:, :, 8:])
    state = found.tensors["tables/item/momentum1"].view(8, 64)
    assert torch.equal(state[:, :32], saved["tables/item/momentum1"].view(8, 32))
    assert not state[:, 32:].any()
    slot = found.tensors["tables/slot/weight"]
    assert torch.equal(slot[:40, :8], saved["tables/slot/weight"])
    assert torch.equal(slot[40:], initial(grown_config(parent), "slot")[40:])
    shards = saved["tables/slot/momentum1"]
    assert shards.shape == (40, 2)
    torch.testing.assert_close(found.tensors["tables/slot/momentum1"][:40, 0], shards.mean(1))


def grown_config(parent: Path) -> Config:
    tables = TABLES | {
        "item": Table(rows=512, width=12, mapping="vocabulary", buckets=8),
        "slot": Table(rows=60, width=16, mapping="identity"),
    }
    return config_of(parent.parent, embeddings={"tables": tables})


def test_what_cannot_keep_its_ids_is_new_and_said_so(parent: Path, begun: dict[str, Begun]) -> None:
    found = begun["grown"]
    for table in ("words", "tags"):
        tables = {"words": Table(rows=120), "tags": Table(rows=50, mapping="identity")}
        expected = initial(config_of(parent.parent, embeddings={"tables": TABLES | tables}), table)
        assert torch.equal(found.tensors[f"tables/{table}/weight"], expected)
        assert not found.tensors[f"tables/{table}/momentum1"].any()
    told = "\n".join(found.lines)
    for line in (
        "table words: it had 97 rows, so that its ids were hashed to others: initialised",
        "table tags: its mapping was 'hash': initialised",
        "table late: new: initialised",
        "table item: 256 rows are now 512, 256 initialised; width 8 is now 12, 4 columns initialised",
        "schema: schema.columns.score is gone",
        "schema: schema.columns.late was not there",
        "schema: schema.tasks.order was not there",
        "tower scorer.ranker.head.weight: order initialised",
        "tower scorer.ranker.tokens.fields.projections.5.weight (late): new: initialised",
        "tower scorer.ranker.tokens.fields.projections.4.weight (score (values)): dropped",
    ):
        assert line in told, line


def test_rows_are_converted_and_states_of_another_optimizer_begin_anew(parent: Path, begun: dict[str, Begun]) -> None:
    saved, found = saved_tensors(parent), begun["grown"]
    rows = found.tensors["tables/v_click/weight"]
    assert rows.dtype == torch.float16
    assert torch.equal(rows, saved["tables/v_click/weight"].half())
    assert saved["tables/v_click/momentum1"].any()
    assert not found.tensors["tables/v_click/momentum1"].any()
    told = "\n".join(found.lines)
    assert "table v_click: float32 converted to float16" in told
    assert "optimizer state v_click/momentum1: its optimizer was rowwise_adagrad: begun anew" in told


def test_parameters_follow_their_fields(parent: Path, begun: dict[str, Begun]) -> None:
    """Numbers of field tokens shift where a field is dropped; projections widen where a table does."""
    saved, found = saved_tensors(parent), begun["grown"].tensors
    config = replace(grown_config(parent), schema=schema(without=("score",)))
    fresh = config_dense(config)
    fields_before = ["user_id", "age", "tags", "profile", "score", "slot"]
    fields = ["user_id", "age", "tags", "profile", "slot", "late"]
    name = RANKER + "tokens.fields.projections.{}.{}"
    for number, field in enumerate(fields):
        weight, bias = (found[name.format(number, part)] for part in ("weight", "bias"))
        if field == "late":
            assert torch.equal(weight, fresh[name.format(number, "weight")])
            continue
        before = fields_before.index(field)
        assert torch.equal(bias, saved[name.format(before, "bias")])
        width = saved[name.format(before, "weight")].shape[1]
        assert torch.equal(weight[:, :width], saved[name.format(before, "weight")])
        assert torch.equal(weight[:, width:], fresh[name.format(number, "weight")][:, width:])
        moment = name.format(number, "weight").replace("dense/", "dense_optimizer/") + "/exp_avg"
        of_saved = name.format(before, "weight").replace("dense/", "dense_optimizer/") + "/exp_avg"
        assert torch.equal(found[moment][:, :width], saved[of_saved])
        assert saved[of_saved].any()
        assert not found[moment][:, width:].any()
    events, events_before = (
        found[RANKER + "tokens.events.projection.weight"],
        saved[RANKER + "tokens.events.projection.weight"],
    )
    assert torch.equal(events[:, :8], events_before[:, :8])  # item: four columns more
    assert torch.equal(events[:, 12:], events_before[:, 8:])
    assert torch.equal(found[RANKER + "head.weight"][:1], saved[RANKER + "head.weight"])
    assert torch.equal(found[RANKER + "head.weight"][1:], fresh[RANKER + "head.weight"][1:])
    blocks = [n for n in saved if "blocks" in n]
    assert len(blocks) > 30
    assert all(torch.equal(saved[n], found[n]) for n in blocks)


def test_ids_dealt_to_other_buckets_take_their_rows_along(parent: Path, begun: dict[str, Begun]) -> None:
    saved, found = saved_tensors(parent), begun["dealt"]
    before = {int(i): row for row, i in enumerate(saved["id_maps/item/ids"].ravel().tolist()) if i != MISSING_ID}
    after = {int(i): row for row, i in enumerate(found.tensors["id_maps/item/ids"].ravel().tolist()) if i != MISSING_ID}
    assert len(after) > 20
    rows, rows_before = found.tensors["tables/item/weight"], saved["tables/item/weight"]
    assert rows.shape == (48, 4)
    assert all(torch.equal(rows[row], rows_before[before[i], :4]) for i, row in after.items())
    assert torch.equal(rows[:2], rows_before[:2, :4])
    assert "  table item: 8 buckets of 32 rows are now 3 of 16" in found.lines
    assert (
        f"  table item: {len(after) + 2} rows moved with their ids, {len(before) - len(after)} ids found no room"
        in (found.lines)
    )
    assert "optimizer state item/momentum1: its optimizer was rowwise_adagrad: begun anew" in "\n".join(found.lines)
    assert torch.equal(found.tensors["tables/words/weight"], saved["tables/words/weight"])
    assert not found.tensors["tables/words/momentum1"].any()


def test_parts_are_switched_off(parent: Path, begun: dict[str, Begun]) -> None:
    saved = saved_tensors(parent)
    rows, tower = begun["only_rows"], begun["only_tower"]
    fresh = config_dense(replace(config_of(parent.parent), schema=schema(without=("late",), tasks=("click",))))
    assert all(torch.equal(rows.tensors[n], tensor) for n, tensor in fresh.items())
    weights = [n for n in saved if n.startswith("tables/") and n.endswith("/weight")]
    states = [n for n in saved if n.startswith("tables/") and n not in weights]
    moments = [n for n in saved if n.startswith("dense_optimizer/")]
    assert all(torch.equal(rows.tensors[n], saved[n]) for n in [*weights, "id_maps/item/ids"])
    assert not any(rows.tensors[n].any() for n in (*states, *moments))
    assert (rows.state.step, rows.state.examples, rows.state.lineage, rows.metrics) == (0, 0, (), None)
    assert [line.split()[0] for line in rows.lines if "switched off" in line] == (
        ["tables'", "tower", "tower's", "learning", "steps", "metrics", "lineage"]
    )
    assert all(torch.equal(tower.tensors[n], saved[n]) for n in (*fresh, *moments))
    assert (tower.tensors["id_maps/item/ids"] == MISSING_ID).all()
    same = replace(config_of(parent.parent), schema=schema(without=("late",), tasks=("click",)))
    assert all(torch.equal(tower.tensors[f"tables/{t}/weight"], initial(same, t)) for t in ("item", "words"))


def test_contradictions_are_refused(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text(dump_config(tiny_config(Path("rows"))))
    with pytest.raises(ConfigError) as caught:
        load_config(run_file, ["--init.tower=false", "--init.id-maps=false"])
    assert len(caught.value.problems) == 2
    assert "init.tower = false but init.tower_optimizer = true" in caught.value.problems[0]
    assert "with tables item" in caught.value.problems[1]
    off = ["--init.tower=false", "--init.tower-optimizer", "false"]
    assert not load_config(run_file, off).init.tower


def test_a_damaged_checkpoint_is_refused_on_every_rank(parent: Path, tmp_path: Path) -> None:
    shutil.copytree(parent, tmp_path / "run")
    path = RunDir(tmp_path / "run").require_latest()
    file = sorted(path.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    config = replace(config_of(parent.parent), schema=schema(without=("late",), tasks=("click",)))
    found = begun_as({"damaged": (config, path)}, 2)["damaged"]
    assert len(found.error) == 1
    assert "has another sha256" in found.error[0]


def test_a_checkpoint_of_the_first_release_is_begun_with() -> None:
    """It does not describe its model: its run file does."""
    path = Path(__file__).parents[1] / "checkpoint" / "golden" / "format_1" / "checkpoints" / "step_00000004"
    config = load_config(path.parents[1] / "config.toml")
    found = begun_as({"old": (config, path)}, 1)["old"]
    assert found.error == []
    assert not [line for line in found.lines if "initialised" in line]
