"""Where a step's time goes: parts exclude each other, add up in whole runs, and are named on a profile's trace."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, differing, saved_tensors, tiny_config, train_all
from trainer import step_split
from trainer.errors import ConfigError
from trainer.run_dir import RunDir
from trainer.step_split import OTHER, PARTS, DeviceTimeline, StepClock, split
from trainer.train_verb import TrainOptions, run_training

pytestmark = pytest.mark.timeout(300)  # all ranks start inside the first test
EVERY_STEP = PARTS.keys() - {"data_wait"}  # the reader may always be ahead
STEPS = 17


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same run without and with a profile, and a short one with; evaluations and checkpoints come in between."""
    folder = tmp_path_factory.mktemp("split")
    rows = write_segments(folder / "rows", {"2026-01-01": [45], "2026-01-02": [40], "2026-01-03": [6]})
    config = tiny_config(
        rows, train={"eval_every": 6}, data={"segments": "..2026-01-02", "eval_segments": "2026-01-03.."}
    )
    config = replace(config, checkpoint=config.checkpoint.model_copy(update={"every_steps": 7}))
    short = replace(config, train=config.train.model_copy(update={"max_steps": 2}))
    made = [
        Run(config, folder / "plain"),
        Run(config, folder / "profiled", profile=True),
        Run(short, folder / "short", profile=True),
    ]
    train_all(made, request.param)
    return {run.run_dir.name: run.run_dir for run in made} | {"ranks": request.param}


def _train_lines(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, RunDir(run).metrics.read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def _spans(path: Path) -> dict[str, list[tuple[float, float]]]:
    """{name: [(start, end)]} of one trace."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
        if event.get("ph") == "X":
            spans.setdefault(event["name"], []).append((event["ts"], event["ts"] + event["dur"]))
    return spans


def test_parts_add_up_to_the_step(runs: dict[str, Any]) -> None:
    lines = _train_lines(runs["plain"])
    assert [line["step"] for line in lines] == [4, 8, 12, 16, STEPS]
    for line in lines:
        found = line["step_split"]
        assert list(found) == [*PARTS, OTHER]
        # More than the step would be time of an evaluation; less cannot be, as the rest is `other`.
        assert sum(found.values()) == pytest.approx(line["step_seconds"], rel=1e-6)
        assert all(found[part] > 0 for part in EVERY_STEP), found
        assert 0 <= found["data_wait"] <= line["data_wait_seconds"]
    later = lines[1:]  # the first window traces the model and makes buffers
    unclaimed = sum(line["step_split"][OTHER] for line in later) / sum(line["step_seconds"] for line in later)
    assert unclaimed < 0.2, [line["step_split"] for line in later]


def test_a_profile_names_the_parts_and_changes_nothing(runs: dict[str, Any]) -> None:
    assert differing(saved_tensors(runs["plain"]), saved_tensors(runs["profiled"])) == []
    assert not RunDir(runs["plain"]).profile.exists()
    for run, steps in (("profiled", [11, 12, 13, 14, 15]), ("short", [1, 2])):
        folder = RunDir(runs[run]).profile
        traces = [folder / f"rank_{rank}.json.gz" for rank in range(runs["ranks"])]
        assert sorted(folder.iterdir()) == traces
        for trace in traces:
            spans = _spans(trace)
            assert spans.keys() >= PARTS.keys()
            assert sorted(name for name in spans if name.startswith("step ")) == sorted(f"step {n}" for n in steps)
            assert len(spans["backward"]) == len(spans["optimizer"]) / 2 == len(steps)  # zero_grad, and the update
            for (start, end), (inner, inner_end) in zip(
                sorted(spans["forward"]), sorted(spans["lookup"])[-len(steps) :], strict=True
            ):
                assert start <= inner <= inner_end <= end


def test_a_dry_run_has_no_profile(tmp_path: Path) -> None:
    options = TrainOptions(str(tmp_path / "x.toml"), [], None, "never", dry_run=True, profile=True)
    with pytest.raises(ConfigError, match="--profile with --dry-run → "):
        run_training(options)


def test_a_part_inside_another_takes_its_time_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(step_split.time, "perf_counter", lambda: now[0])
    clock = StepClock()

    def passes(seconds: float) -> None:
        now[0] += seconds

    for _ in range(2):
        passes(1)
        with clock.part("forward"):
            passes(10)
            with clock.part("lookup"):
                passes(100)
                with clock.part("id_exchange"), clock.part("id_exchange"):
                    passes(1000)
            passes(20)
        with clock.paused(), clock.part("forward"):
            passes(7)
    with clock.part("telemetry"):
        passes(3)
        found = clock.take()
        passes(4)
    assert {part: seconds for part, seconds in found.items() if seconds} == {
        "forward": 60,
        "lookup": 200,
        "id_exchange": 2000,
        "telemetry": 3,
    }
    assert split(found, 2, 1200.0)[OTHER] == 1200 - 2263 / 2
    assert clock.take()["telemetry"] == 4  # of the next window: reporting takes time too
    with pytest.raises(KeyError):
        clock.part("lunch")
    assert not any(StepClock(on=False).take().values())


def test_an_error_leaves_the_clock_usable() -> None:
    clock = StepClock(torch.device("cpu"))
    with pytest.raises(ValueError, match="x"), clock.part("forward"), clock.part("lookup"):
        raise ValueError("x")
    clock.take()
    with clock.part("optimizer"):
        pass
    assert [part for part, seconds in clock.take().items() if seconds] == ["optimizer"]


class _Event:
    """As torch.cuda.Event: done when the device gets there."""

    queued: ClassVar[list[_Event]] = []
    done_at: float | None = None

    def record(self, stream: Any = None) -> None:
        self.done_at = None
        self.queued.append(self)

    def query(self) -> bool:
        return self.done_at is not None

    def elapsed_time(self, end: _Event) -> float:
        assert self.done_at is not None
        assert end.done_at is not None
        return end.done_at - self.done_at

    @classmethod
    def reach(cls, *milliseconds: float) -> None:
        for event, at in zip(list(cls.queued), milliseconds, strict=False):
            event.done_at = at
            cls.queued.remove(event)


def test_what_a_device_has_not_done_is_told_later() -> None:
    made: list[_Event] = []

    def make() -> _Event:
        made.append(_Event())
        return made[-1]

    timeline = DeviceTimeline(make)
    for ended in (None, "forward", None, "backward", "forward"):
        timeline.mark(ended)
    assert timeline.take() == {}  # nothing waits for the device
    _Event.reach(0, 100, 105, 400)
    assert timeline.take() == {"forward": 0.1, "backward": 0.295}
    timeline.mark("optimizer")
    _Event.reach(1000, 1010)
    assert timeline.take() == pytest.approx({"forward": 0.6, "optimizer": 0.01})
    assert len(made) == 5  # events are used again
