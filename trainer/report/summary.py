"""The words and tables of a page, in plain values: what was trained on what, how it ended, what each run set."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from trainer.report.formats import count, fixed, moment, number, plain, share, short, size, span
from trainer.report.learning import mapping, score
from trainer.report.lines import Line
from trainer.report.read import Run
from trainer.telemetry.words import UNKNOWN

LESS_IS_BETTER = ("ne", "loss")
MOST_SLICES = 20


@dataclass(frozen=True)
class Table:
    """head, and rows of the same length. numbers: columns that hold numbers, and align right."""

    head: list[str]
    rows: list[list[str]]
    numbers: frozenset[int] = frozenset()
    note: str = ""


def summary(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(what, of each run). Rows that no run can fill are left out."""
    rows = {
        "Run directory": [_shown_path(run.path) for run in runs],
        "Trained": [_trained(run) for run in runs],
        "Data": [_data(run) for run in runs],
        "Trained through": [_through(run) for run in runs],
        "Model": [_model(run) for run in runs],
        "Size": [_size(run) for run in runs],
        "Best checkpoint": [best_checkpoint(run) for run in runs],
        "Duration": [_duration(run) for run in runs],
        "Throughput": [_throughput(run) for run in runs],
        "Goodput": [_goodput(run) for run in runs],
        "Machine": [_machine(run) for run in runs],
        "Versions": [_versions(run) for run in runs],
        "Typed": [_typed(run) for run in runs],
        "Not read": ["; ".join(run.notes) for run in runs],
    }
    return [(what, [plain(value, 400) or UNKNOWN for value in of]) for what, of in rows.items() if any(of)]


def results(runs: Sequence[Run]) -> Table:
    """The newest scores of each run, split and task; of training since the model's birth and since the last log."""
    head = ["split", "task", "step", "NE", "AUC", "GAUC", "calibration", "loss", "examples"]
    rows = []
    for run in runs:
        newest = run.lines.newest
        parts = [
            ("evaluation of " + plain(line.values.get("split", ""), 60), line.values) for line in _newest_evals(run)
        ]
        parts += [("training, since the last log", newest)] if newest else []
        if lifetime := mapping(newest.get("lifetime")):
            parts.append(("training, since birth", {**newest, "tasks": lifetime}))
        for split, values in parts:
            for task in mapping(values.get("tasks")):
                of = mapping(mapping(values["tasks"]).get(task))
                scores = [fixed(of.get(key)) for key in ("ne", "auc", "gauc", "calibration", "loss")]
                scores[2] = scores[2] if "gauc" in of else ""
                rows.append([run.name, split, str(task), count(values["step"]), *scores, count(of.get("examples"))])
    if len(runs) == 1:
        return Table(head, [row[1:] for row in rows], frozenset(range(2, 9)))
    return Table(["run", *head], sorted(rows, key=lambda row: (row[1], row[2])), frozenset(range(3, 10)))


def sliced(runs: Sequence[Run]) -> Table:
    """The newest scores of evaluations, per value of the field that they were cut by."""
    rows = []
    for run in runs:
        for line in _newest_evals(run):
            slices = mapping(line.values.get("slices"))
            for value, tasks in list(mapping(slices.get("values")).items())[:MOST_SLICES]:
                for task, of in mapping(tasks).items():
                    scores = [fixed(mapping(of).get(key)) for key in ("ne", "auc", "gauc", "calibration")]
                    where = [plain(line.values.get("split", ""), 60), f"{slices.get('by', '')} {value}".strip(), task]
                    rows.append([run.name, *where, *scores, count(mapping(of).get("examples"))])
    head = ["run", "split", "slice", "task", "NE", "AUC", "GAUC", "calibration", "examples"]
    if len(runs) == 1:
        return Table(head[1:], [row[1:] for row in rows], frozenset(range(3, 8)))
    return Table(head, rows, frozenset(range(4, 9)))


def _newest_evals(run: Run) -> list[Line]:
    return list({line.values.get("split"): line for line in run.lines.of_kind("eval")}.values())


def best_checkpoint(run: Run) -> str:
    """Of the steps that were evaluated and saved: by [checkpoint] best, on the split where most of them were."""
    saved = {line.step for line in run.lines.of_kind("checkpoint")}
    evals = [line for line in run.lines.of_kind("eval") if line.step in saved]
    splits = Counter(line.values.get("split") for line in evals).most_common(1)
    evals = [line for line in evals if line.values.get("split") == splits[0][0]]
    task, _, metric = str(run.setting("checkpoint", "best", "ne")).rpartition(".")
    scored = []
    for line in evals:
        tasks = list(mapping(line.values.get("tasks")))
        of_task = task or (str(tasks[0]) if tasks else "")
        value = score(line.values, of_task, metric)
        if value is not None:
            scored.append(
                (value, line.step, f"{of_task} {metric.upper()} {number(value)}, {line.values.get('split', '')}")
            )
    if not scored:
        newest = max(saved, default=None)
        return f"step {count(newest)}, the newest; none was evaluated" if newest is not None else ""
    value, step, words = (min if metric in LESS_IS_BETTER else max)(scored)
    return f"step {count(step)} · {words}"


def _shown_path(path: str) -> str:
    """Relative where it can be: the page may be read on another machine."""
    here, absolute = Path.cwd(), Path(os.path.abspath(path))
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) and absolute != here else path


def _trained(run: Run) -> str:
    newest = run.lines.newest
    if not newest:
        return "no step has been reported yet"
    parts = [f"{count(newest['step'])} steps", f"{count(newest['examples'])} examples"]
    if newest.get("rows"):
        parts.append(f"{count(newest['rows'])} request rows")
    if newest.get("segment"):
        parts.append(f"segment {newest['segment']}")
    if newest.get("epoch"):
        parts.append(f"epoch {number(newest['epoch'] + 1)}")
    return " · ".join(parts)


def _data(run: Run) -> str:
    rows, batch = run.setting("data", "rows", ""), run.setting("data", "global_batch")
    parts = [spoken(str(rows)) if rows else ""]
    parts += [f"segments {run.setting('data', 'segments')}"] if run.setting("data", "segments") else []
    parts += [f"evaluation {run.setting('data', 'eval_segments')}"] if run.setting("data", "eval_segments") else []
    parts += [f"global batch {count(batch)}"] if batch else []
    return " · ".join(part for part in parts if part)


def _through(run: Run) -> str:
    known = [value for value in run.lines.through if not math.isnan(value)]
    return moment(max(known) / 1e6) if known else ""


def _model(run: Run) -> str:
    model = mapping(run.config.get("model"))
    words = {"dim": "dim {}", "num_layers": "{} layers", "num_heads": "{} heads"}
    parts = [str(model.get("kind", ""))] + [word.format(model[key]) for key, word in words.items() if key in model]
    tasks = list(mapping(mapping(run.config.get("schema")).get("tasks")))
    parts += [f"tasks {', '.join(map(str, tasks))}"] if tasks else []
    return " · ".join(part for part in parts if part)


def _size(run: Run) -> str:
    tables = [table for table in run.plan.get("tables") or [] if isinstance(table, dict)]
    parts = []
    if run.dense_parameters:
        parts.append(f"tower {short(run.dense_parameters)} parameters")
    if tables:
        values = sum(_int(table.get("rows")) * _int(table.get("width")) for table in tables)
        weights = sum(_sum(table.get("weight_bytes")) + _sum(table.get("optimizer_bytes")) for table in tables)
        parts.append(f"{len(tables)} tables, {short(values)} parameters, {size(weights)} with their optimizers")
    return " · ".join(parts)


def _duration(run: Run) -> str:
    times = run.lines.time
    if len(times) < 2:
        return ""
    starts = 1 + sum(line.values.get("event") == "resumed" for line in run.lines.of_kind("event"))
    span_ = f"{span(max(times) - min(times))} from {moment(min(times))}"
    return f"{span_} · {starts} starts" if starts > 1 else span_


def _throughput(run: Run) -> str:
    """Over all steps that were reported, as the closing words have it."""
    speed, seconds = run.lines.column("examples_per_second"), run.lines.column("step_seconds")
    if speed is None or seconds is None or speed.at != seconds.at:
        return ""
    steps = [run.lines.step[at] for at in speed.at]
    born = [line.step for line in run.lines.of_kind("event") if line.values.get("event") == "init_from"]
    weights = [steps[0] - (born[0] if born else 0), *(now - before for before, now in pairwise(steps))]
    spent = [max(0, steps_) * each for steps_, each in zip(weights, seconds.values, strict=True)]
    known = [(t, v) for t, v in zip(spent, speed.values, strict=True) if math.isfinite(t) and math.isfinite(v)]
    total = sum(t for t, _ in known)
    parts = [f"{short(sum(t * v for t, v in known) / total)} examples/s over the run"] if total else []
    mfu = run.lines.column("mfu")
    parts += [f"MFU {share(mfu.last)} at the end"] if mfu is not None else []
    return " · ".join(parts)


def _goodput(run: Run) -> str:
    column = run.lines.column("goodput", "share")
    if column is None:
        return ""
    lost = mapping(mapping(run.lines.newest.get("goodput")).get("lost_seconds"))
    known = [(seconds, name) for name, seconds in lost.items() if isinstance(seconds, int | float) and seconds >= 1]
    words = ", ".join(f"{name.replace('_', ' ')} {span(seconds)}" for seconds, name in sorted(known, reverse=True))
    return share(column.last) + (f" · lost to {words}" if words else "")


def _machine(run: Run) -> str:
    env = run.env
    parts = [
        f"{count(run.plan['world_size'])} rank{'' if run.plan['world_size'] == 1 else 's'}"
        if run.plan.get("world_size")
        else "",
        str(env.get("cpu", "")),
    ]
    parts += [
        f"{env['cores']} cores" if env.get("cores") else "",
        size(env["memory_bytes"]) if env.get("memory_bytes") else "",
    ]
    gpus = env.get("gpus")
    parts += ["no GPU" if gpus == 0 else f"GPUs {plain(gpus)}" if gpus else ""]
    return " · ".join(part for part in parts if part)


def _versions(run: Run) -> str:
    parts = [f"Python {run.env['python']}"] if run.env.get("python") else []
    return " · ".join(parts + [f"{name} {version}" for name, version in mapping(run.env.get("versions")).items()])


def _typed(run: Run) -> str:
    overrides = run.env.get("overrides")
    return " ".join(spoken(str(word)) for word in overrides) if isinstance(overrides, list) else ""


def spoken(text: str) -> str:
    """A path or URI without the options of its store and the keys that it may hold."""
    from trainer.checkpoint.folder import spoken as without_keys  # noqa: PLC0415

    return without_keys(text) if "://" in text else text


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _sum(values: object) -> int:
    return sum(_int(value) for value in values) if isinstance(values, list) else 0
