"""Guards look on: they stop a run where it should stop, keep what is worth a look, and change no weight."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from pipelines.sampled_pass import SampledPass, chosen_places
from pipelines.segments import find_segments
from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import make_data, make_rows, make_schema, write_rows, write_segments
from tests.trainer.runs import Run, differing, newest_state, saved_tensors, tiny_config, train_runs
from trainer.config_check import contradictions
from trainer.config_sections import Checkpoint, Telemetry, Train
from trainer.guards.pace import Pace
from trainer.guards.patience import Patience
from trainer.guards.spikes import SpikeDetector
from trainer.train_slices import find_slices

LOUD, LOUD_STEP, ROWS = 140, 29, 165  # the one row that is clicked on, where the model has learnt that none is
SPIKES = {"spike_sigmas": 4.0, "spike_window": 16, "log_every": 4}
SLICED: dict[str, Any] = {"telemetry": {"slice_by": "user_id"}}  # the one field of strings; a run file may not
EARLY: dict[str, Any] = {
    "train": {"eval_every": 1, "eval_rows": 5, "stop_after": 2, "stop_min_delta": 10.0},
    "checkpoint": {"every_steps": 1, "keep": 1, "keep_best": 1, "every_minutes": 0.0},
}


def _runs_and_errors(rank: int, world_size: int, runs: list[Run]) -> list[Any]:
    """Of each run its result, or the line it ended with; from every rank."""
    from trainer.errors import UserError

    found: list[Any] = []
    for run in runs:
        try:
            found += train_runs(rank, world_size, [run])
        except UserError as error:
            found.append(str(error))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guards")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, list[Any]]:
    """{run: of each rank, what came of it}. One group of processes per world size."""
    days = write_segments(folder / "rows" / "days", {"0": [23, 17], "1": [31, 29]})
    loud = make_rows(ROWS, seed=3)
    for number, row in enumerate(loud):
        row["click"] = [int(number == LOUD)] * len(row["item"])
    write_rows(folder / "rows" / "loud" / "dt=0" / "part-0.parquet", loud)
    spoilt = make_rows(15, seed=2)
    for row in spoilt:
        row["score"] = 3e38
    write_rows(folder / "rows" / "spoilt" / "dt=0" / "part-0.parquet", make_rows(15, seed=1))
    write_rows(folder / "rows" / "spoilt" / "dt=1" / "part-0.parquet", spoilt)

    def run(name: str, rows: Path, resume: Any = "never", **sections: Any) -> tuple[str, Run]:
        return name, Run(tiny_config(rows, **sections), folder / name, resume)

    held = {"data": {"segments": "0", "eval_segments": "1"}}
    best = {"keep_best": 1, "keep": 1}
    cut = EARLY | {"train": EARLY["train"] | {"max_steps": 2}}
    stop = {"train": {"on_nonfinite": "stop"}}
    named = [
        run("early", days, **held, **EARLY),
        run("early, cut", days, **held, **cut),
        run("early, cut", days, "must", **held, **EARLY),
        run("early", days, "must", **held, **EARLY),
        run("shared", days, **held, train={"eval_every": 1, "eval_share": 1e-4}, checkpoint=best),
        run("loud", folder / "rows" / "loud", train=SPIKES, **SLICED),
        run("good", folder / "rows" / "spoilt", data={"segments": "0"}),
        run("stop", folder / "rows" / "spoilt", **stop),
        run("stop", folder / "rows" / "spoilt", "must", **stop),
    ]
    alone = [
        run("loud, alone", folder / "rows" / "loud", train=SPIKES, **SLICED),
        run("loud, unwatched", folder / "rows" / "loud", train=SPIKES | {"spike_sigmas": 0.0}),
        run("loud, cut", folder / "rows" / "loud", train=SPIKES | {"max_steps": LOUD_STEP}, **SLICED),
        run("loud, cut", folder / "rows" / "loud", "must", train=SPIKES, **SLICED),
        run("too many", folder / "rows" / "spoilt", train={"max_bad_steps": 2}),
    ]
    found: dict[str, list[Any]] = {}
    for world_size, of_size in ((2, named), (1, alone)):
        by_rank = run_ranks(_runs_and_errors, world_size, [run for _, run in of_size], timeout=150)
        for (name, _), outcomes in zip(of_size, zip(*by_rank, strict=True), strict=True):
            found.setdefault(name, []).append(outcomes)
    return found


def _lines(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def _events(run: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in _lines(run, "event") if line["event"] == name]


def _scores(run: Path) -> dict[str, Mapping[str, float]]:
    return {
        path.parent.name: json.loads(path.read_text())["scores"] for path in sorted(run.glob("checkpoints/*/COMMIT"))
    }


def test_a_run_without_improvement_stops_early_and_says_which_checkpoint_is_best(
    folder: Path, results: dict[str, list[Any]]
) -> None:
    """The first evaluation is the one to beat; two more do not."""
    first, again = (outcomes[0] for outcomes in results["early"])
    assert newest_state(folder / "early").step == 3
    [event] = _events(folder / "early", "early_stop")
    evals = _lines(folder / "early", "eval")
    under_way = [line for line in evals if line["rows"] <= 5]
    assert [line["step"] for line in under_way] == [1, 2, 3]
    best = min(under_way, key=lambda line: line["tasks"]["click"]["ne"])
    assert (event["step"], event["evaluations"], event["best_step"]) == (3, 2, best["step"])
    assert first["ended"].startswith("stopped early at step 3: click.ne has not improved in 2 evaluations")
    assert f"step_{best['step']:08d} (click.ne " in first["places"]["best checkpoint"]
    assert set(_scores(folder / "early")) == {"step_00000003", f"step_{best['step']:08d}"}
    assert again["ended"] == first["ended"], "a run that has stopped stays stopped"


def test_a_resumed_run_stops_where_the_uninterrupted_one_does(folder: Path, results: dict[str, list[Any]]) -> None:
    assert differing(saved_tensors(folder / "early"), saved_tensors(folder / "early, cut")) == []
    one, two = (newest_state(folder / name) for name in ("early", "early, cut"))
    assert (one.step, one.extra["guards"]) == (two.step, two.extra["guards"])
    assert _scores(folder / "early") == _scores(folder / "early, cut")


def test_an_evaluation_that_would_take_too_much_of_the_time_is_put_off(
    folder: Path, results: dict[str, list[Any]]
) -> None:
    """The second is the first whose pay is known; nothing else changes."""
    steps = [line["step"] for line in _lines(folder / "shared", "eval")]
    [event] = _events(folder / "shared", "evaluation_put_off")
    assert steps == [1, 2, 8]
    assert event["next_step"] > 8
    assert newest_state(folder / "shared").extra["guards"]["next_evaluation"] == event["next_step"]  # type: ignore[index,call-overload]


def test_the_evaluation_at_the_end_scores_the_last_checkpoint(folder: Path, results: dict[str, list[Any]]) -> None:
    scores = _scores(folder / "shared")
    last = _lines(folder / "shared", "eval")[-1]
    assert scores["step_00000008"]["click.ne"] == last["tasks"]["click"]["ne"]
    [result] = [outcomes[0] for outcomes in results["shared"]]
    best = min(scores, key=lambda name: scores[name]["click.ne"])
    assert f"{best} (click.ne " in result["places"]["best checkpoint"]


def test_a_bad_step_ends_the_run_with_a_line_and_the_last_good_model(
    folder: Path, results: dict[str, list[Any]]
) -> None:
    """On every rank the same line; a resumed run goes on behind the batch, to the next one."""
    lines, again = results["stop"]
    assert len(set(lines)) == 1
    assert lines[0].startswith("step 4: ")
    assert "not finite" in lines[0]
    assert "train.on_nonfinite = 'stop'" in lines[0]
    assert "part-0.parquet rows " in lines[0]
    assert again[0].startswith("step 5: ")
    assert newest_state(folder / "stop").bad_steps == 2
    good, after = (saved_tensors(folder / name) for name in ("good", "stop"))
    assert [name for name in differing(good, after) if not name.startswith("id_maps/")] == []
    kept = folder / "stop" / "spikes" / "step_00000004"
    assert json.loads((kept / "why.json").read_text())["kind"] == "nonfinite"
    rows = duckdb.sql(f"select distinct row from '{kept}/step_00000004.*.parquet'").fetchall()
    assert 1 <= len(rows) <= 5


def test_so_many_bad_steps_in_a_row_end_the_run(folder: Path, results: dict[str, list[Any]]) -> None:
    assert results["too many"][0][0].startswith("step 5: ")
    assert "train.max_bad_steps = 2" in results["too many"][0][0]
    assert [line["in_a_row"] for line in _events(folder / "too many", "nonfinite")] == [1, 2]


def test_a_spike_is_told_and_its_batches_lead_back_to_the_rows(folder: Path, results: dict[str, list[Any]]) -> None:
    [event] = _events(folder / "loud", "loss_spike")
    assert event["step"] == LOUD_STEP
    assert event["loss"] > event["median"] + 4 * event["sigma"]
    place, step = folder / "loud" / "spikes" / event["folder"], event["step"]
    assert json.loads((place / "why.json").read_text())["step"] == step
    steps = {path.name.split(".")[0] for path in place.glob("*.parquet")}
    assert steps == {f"step_{number:08d}" for number in range(step - 2, step + 3)}
    data = folder / "rows" / "loud" / "dt=0" / "part-0.parquet"
    [found] = duckdb.sql(
        f"""select r.file_row_number, any_value(list_sum(r.click) = len(r.item))
        from read_parquet('{data}', filename = true, file_row_number = true) r
        join read_parquet('{place}/step_{step:08d}.*.parquet') e on e.file = r.filename and e.row = r.file_row_number
        group by 1 order by sum(e.weight * e.loss) desc limit 1"""
    ).fetchall()
    assert found == (LOUD, True)


def test_ranks_see_the_same_spike_and_a_resumed_run_keeps_the_same_batches(
    folder: Path, results: dict[str, list[Any]]
) -> None:
    [one], [two] = (_events(folder / name, "loss_spike") for name in ("loud, alone", "loud"))
    assert one["step"] == two["step"]
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)

    def examples(run: str) -> list[Any]:
        files = folder / run / "spikes" / one["folder"] / "*.parquet"
        columns = "step, row, place, task, label, weight"
        return duckdb.sql(f"select {columns} from '{files}' order by all").fetchall()

    assert examples("loud, alone") == examples("loud, cut") == examples("loud")
    assert newest_state(folder / "loud, alone").extra["guards"] == newest_state(folder / "loud, cut").extra["guards"]


def test_watching_changes_no_weight(folder: Path, results: dict[str, list[Any]]) -> None:
    assert differing(saved_tensors(folder / "loud, alone"), saved_tensors(folder / "loud, unwatched")) == []
    assert not (folder / "loud, unwatched" / "spikes").exists()


def test_figures_per_slice_are_the_same_however_the_run_was_made(folder: Path, results: dict[str, list[Any]]) -> None:
    """One string field, whose values the run finds; counted against the rows as they were written."""
    alone, cut, two = (_events(folder / name, "segment")[0] for name in ("loud, alone", "loud, cut", "loud"))
    assert alone["slices"] == cut["slices"]
    assert alone["slices"]["by"] == "user_id"
    found = alone["slices"]["values"]
    counts: dict[str, int] = {}
    for row in make_rows(ROWS, seed=3):
        counts[row["user_id"]] = counts.get(row["user_id"], 0) + sum(weight is not None for weight in row["ips"])
    assert {user: of["click"]["examples"] for user, of in found.items()} == counts
    assert sum(of["order"]["examples"] for of in found.values()) == alone["tasks"]["order"]["examples"]
    for user, of in two["slices"]["values"].items():
        assert of["click"]["examples"] == found[user]["click"]["examples"]
        assert of["click"]["loss"] == pytest.approx(found[user]["click"]["loss"], rel=1e-3)
    lines = [line for line in _lines(folder / "loud", "train") if line["slices"]["values"]]
    assert all(
        sum(of["click"]["examples"] for of in line["slices"]["values"].values()) == line["tasks"]["click"]["examples"]
        for line in lines
    )


def test_slices_that_cannot_be_are_refused_and_the_most_frequent_are_found(tmp_path: Path) -> None:
    schema = make_schema()

    def problems(**keys: Any) -> list[str]:
        return contradictions({"schema": schema, "telemetry": Telemetry(**keys)})

    assert problems(slice_by="age") == problems(slice_by="item", slice_values=(3, 4)) == []
    assert "one of: age, slot, late, item" in problems(slice_by="v_item")[0]
    assert "never the user" in problems(slice_by="user_id")[0]
    assert "at most 19" in problems(slice_by="item", slice_values=tuple(range(20)))[0]
    assert "its buckets" in problems(slice_by="age", slice_values=(3,))[0]
    assert "without telemetry.slice_by" in problems(slice_values=(3,))[0]
    rows = make_rows(300, seed=5)
    write_rows(tmp_path / "dt=0" / "part-0.parquet", rows, row_group_rows=300)
    segments = find_segments(make_data(tmp_path, segments="..")).train
    items = Counter(item for row in rows for item in row["item"])
    found = find_slices(schema, Telemetry(slice_by="item"), segments)
    assert list(found.names) == [str(n) for n, _ in sorted(items.items(), key=lambda i: (-i[1], str(i[0])))][:19]
    assert set(find_slices(schema, Telemetry(slice_by="age"), segments).names) == {"< 18", "18 – 30", "≥ 50"}


def test_the_sample_is_fair_and_the_same_each_time(tmp_path: Path) -> None:
    """Of every segment its share, whatever the world size; all rows where there are no more."""
    write_segments(tmp_path, {"0": [400], "1": [100, 100], "2": [7]})
    data = make_data(tmp_path, segments="..", window_batches=8)
    segments = find_segments(data).train

    def sampled(rows: int) -> list[tuple[str, int, int]]:
        pass_ = SampledPass(rows, schema=make_schema(), data=data, segments=segments)
        return [(w.name, w.first_batch, w.rows) for w in pass_.windows_from()]

    found = sampled(60)
    assert found == sampled(60)
    assert sum(rows for _, _, rows in found) == 60
    by_segment = {name: sum(rows for n, _, rows in found if n == name) for name in ("0", "1", "2")}
    assert by_segment["0"] in (35, 40, 45)
    assert by_segment["1"] in (15, 20, 25)
    assert len({first for _, first, _ in found}) > 6, "not the first rows"
    assert sum(rows for _, _, rows in sampled(10_000)) == 607
    assert len(chosen_places(10**6, 64)) == 64


def test_evaluations_take_their_share_of_the_time_and_no_more() -> None:
    chance = random.Random(1)
    for share in (0.01, 0.05, 0.3):
        pace, step, evaluating, training = Pace(50, share), 0, 0.0, 0.0
        took = 0
        while step < 20_000:
            seconds, step_seconds = chance.uniform(0.1, 9.0), chance.uniform(0.01, 0.02)
            before, step = step, max(pace.next_step, 50)
            assert pace.is_due(step)
            assert not any(pace.is_due(between) for between in range(before + 1, step))
            training += (step - before) * 0.01
            pace.next_step = pace.appoint(step, seconds, 0.01)
            evaluating += seconds
            took += 1
        training += (pace.next_step - step) * 0.01
        assert evaluating <= share * (evaluating + training) * 1.0001, step_seconds
        assert took > 20_000 * 0.01 * share / 9.0 * 0.9, "and it is made use of"


def test_without_a_share_every_evaluation_is_made() -> None:
    pace = Pace(10, 0.0)
    assert [step for step in range(1, 31) if pace.is_due(step)] == [10, 20, 30]
    assert pace.appoint(10, 1e6, 1.0) == 20
    assert not any(Pace(0, 0.5).is_due(step) for step in range(5))


def test_patience_counts_improvements_not_noise() -> None:
    """More is better for AUC; small steps that add up are one improvement once they do."""
    patience = Patience("click.auc", -1, stop_after=3, min_delta=0.01)
    stale = []
    for step, auc in enumerate([0.70, 0.705, 0.709, 0.711, 0.700, None, 0.712], start=1):
        patience.count(step, {} if auc is None else {"click.auc": auc, "click.ne": 0.0})
        stale.append(patience.stale)
    assert stale == [0, 1, 2, 0, 1, 2, 3]
    assert patience.is_over
    assert (patience.best_score, patience.best_step) == (0.712, 7)
    again = Patience("click.auc", -1, stop_after=4, min_delta=0.01)
    again.restore(json.loads(json.dumps(patience.state())))
    assert not again.is_over, "more patience was given"
    again.count(8, {"click.auc": 0.713})
    assert again.is_over


def test_a_spike_is_found_and_a_level_that_stays_becomes_the_normal_one() -> None:
    detector, chance = SpikeDetector(8.0, 64), np.random.default_rng(0)
    found = []
    for step in range(600):
        level = 0.4 if step < 300 else 1.2
        loss = float(level + 0.02 * chance.standard_normal() + 5.0 * (step in (100, 101, 200)))
        if detector.look(loss):
            found.append(step)
        if step == 150:
            state = json.loads(json.dumps(detector.state()))
            detector = SpikeDetector(8.0, 64)
            detector.restore(state)
    assert found == [100, 200, 300]
    assert detector.look(None) is None
    assert SpikeDetector(0.0, 64).look(1e9) is None


def test_guards_that_nothing_would_wake_are_refused() -> None:
    def problems(train: dict[str, Any], **checkpoint: Any) -> str:
        return "\n".join(contradictions({"train": Train(**train), "checkpoint": Checkpoint(**checkpoint)}))

    assert "train.stop_after = 2 but train.eval_every = 0" in problems({"stop_after": 2}, keep_best=1)
    assert "train.eval_share = 0.1 but train.eval_every = 0" in problems({"eval_share": 0.1})
    assert "checkpoint.keep_best = 0" in problems({"stop_after": 2, "eval_every": 5})
    assert problems({"stop_after": 2, "eval_every": 5, "eval_share": 0.1}, keep_best=1) == ""
