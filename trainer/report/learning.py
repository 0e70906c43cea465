"""Curves that every run has: how it learns and how fast it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trainer.report.figures import Curve, Panel, Thinned, Unit, cut_top, rounded
from trainer.report.formats import plain, span
from trainer.report.lines import Column, Line

LEARNING, SPEED = "Learning", "Speed"
SCORES = (
    ("ne", "NE", "normalized entropy; below 1 beats the base rate"),
    ("auc", "AUC", ""),
    ("calibration", "Calibration", "predicted over observed positives; 1 is right"),
    ("gauc", "GAUC", "AUC averaged over users, of evaluations"),
)
# Of train lines, once for all tasks: path, section, title, unit, note.
SINGLE: tuple[tuple[tuple[str, ...], str, str, Unit, str], ...] = (
    (("loss",), LEARNING, "Loss", "", "mean of the steps since the last log"),
    (("grad_norm",), LEARNING, "Gradient norm", "", "of dense parameters, before clipping"),
    (("weight_norm",), LEARNING, "Weight norm", "", "of dense parameters"),
    (("learning_rate",), LEARNING, "Learning rate", "", "of the dense optimizer"),
    (("examples_per_second",), SPEED, "Throughput", "rate", "examples a second, all ranks"),
    (("rows_per_second",), SPEED, "Request rows a second", "rate", "all ranks"),
    (("step_seconds",), SPEED, "Step time", "seconds", "mean wall time of a step"),
    (("mfu",), SPEED, "MFU", "share", "operations of the ranker over the peak of all workers"),
    (("bad_steps",), LEARNING, "Bad steps", "", "skipped for a loss or gradient that is not finite, since birth"),
    (("quarantined_rows",), LEARNING, "Bad rows set aside", "", "since the model's birth"),
)
ONLY_IF_ANY = ("bad_steps", "quarantined_rows")
SHOWN = {path[0] for path, *_ in SINGLE} | {"data_wait_seconds", "step_split", "tasks", "lifetime"}
SHOWN |= {"tables", "slices", "goodput"}
NOT_SHOWN = {"data_through", "flops_per_second", "rows"}  # an axis; what MFU and throughput say


def learning_panels(thin: Thinned) -> list[Panel]:
    """Loss, scores per task, gradient norm, learning rate; then speed. Panels without a curve are left out."""
    single = {
        path[0]: _single(thin, path, Panel(section, title, unit, note)) for path, section, title, unit, note in SINGLE
    }
    order = [single["loss"], *(_scores(thin, *score) for score in SCORES)]
    order += [panel for name, panel in single.items() if name != "loss" and panel.section == LEARNING]
    order += [single["examples_per_second"], single["rows_per_second"], single["step_seconds"], _data_wait(thin)]
    order += [single["mfu"], *(_step_split(thin, run) for run in range(len(thin.runs)))]
    return [panel for panel in order if panel.curves]


def _single(thin: Thinned, path: tuple[str, ...], panel: Panel) -> Panel:
    for number, run in enumerate(thin.runs):
        column = run.lines.column(*path)
        if column is not None and (path[0] not in ONLY_IF_ANY or column.last):
            look = {"colour": number, "dash": 0}
            panel.curves.append(thin.curve(number, panel.title, column, group=run.name, **look))
    if path == ("step_seconds",) and panel.curves:
        columns = [run.lines.column(*path) for run in thin.runs]
        cut_top(panel, np.concatenate([np.frombuffer(c.values) for c in columns if c is not None]), span)
    return panel


def _scores(thin: Thinned, key: str, title: str, note: str) -> Panel:
    """A task before each update, since the model's birth, and in evaluations."""
    panel = Panel(LEARNING, title, note=note)
    alone = len(thin.runs) == 1
    for number, run in enumerate(thin.runs):
        for place, task in enumerate(_tasks(thin)):
            look, group = thin.look(number, place), task if alone else f"{run.name} · {task}"
            column = run.lines.column("tasks", task, key)
            if column is not None:
                panel.curves.append(thin.curve(number, f"{task}, since the last log", column, group=group, **look))
            lifetime = run.lines.column("lifetime", task, key)
            if lifetime is not None and alone:
                name = f"{task}, since birth"
                panel.curves.append(thin.curve(number, name, lifetime, group=group, style="faint", **look))
            panel.curves += _evaluated(thin, number, run.lines.of_kind("eval"), task, key, group, look)
    return panel


def _tasks(thin: Thinned) -> list[str]:
    """Of all runs, so that a task looks the same in each."""
    found: dict[str, None] = {}
    for run in thin.runs:
        found |= dict.fromkeys(run.lines.names("tasks"))
        for line in run.lines.of_kind("eval"):
            found |= dict.fromkeys(task for task in mapping(line.values.get("tasks")))
    return list(found)


def _evaluated(
    thin: Thinned, run: int, lines: list[Line], task: str, key: str, group: str, look: dict[str, Any]
) -> list[Curve]:
    found = [(line, score(line.values, task, key)) for line in lines]
    known = [(line, value) for line, value in found if value is not None]
    if not known:
        return []
    text = [plain(line.values.get("split", ""), 60) for line, _ in known]
    points = [(line.at, value) for line, value in known]
    return [thin.points(run, f"{task}, evaluation", points, style="points", group=group, text=text, **look)]


def _data_wait(thin: Thinned) -> Panel:
    panel = Panel(SPEED, "Data wait", "share", "part of a step that waited for its batch")
    for number, run in enumerate(thin.runs):
        waited, step = run.lines.column("data_wait_seconds"), run.lines.column("step_seconds")
        if waited is None or step is None or waited.at != step.at:
            continue
        whole = np.frombuffer(step.values, dtype=np.float64)
        shares = np.frombuffer(waited.values, dtype=np.float64) / np.where(whole > 0, whole, math.nan)
        column = Column(waited.at)
        column.values.extend(shares.tolist())
        panel.curves.append(thin.curve(number, "Data wait", column, group=run.name, colour=number))
    return panel


def _step_split(thin: Thinned, run: int) -> Panel:
    """Parts on one another: all of them at the moments at which the whole step is highest and lowest."""
    lines = thin.runs[run].lines
    panel = Panel(SPEED, "Where a step goes", "seconds", "parts of a step of rank 0, on one another", run=run)
    found = [(name, lines.column("step_split", name)) for name in lines.names("step_split")]
    parts = {name: column for name, column in found if column is not None}
    moments = sorted({at for column in parts.values() for at in column.at})
    if not moments:
        return panel
    place = {at: number for number, at in enumerate(moments)}
    stacked = {name: np.zeros(len(moments)) for name in parts}
    for name, column in parts.items():
        stacked[name][[place[at] for at in column.at]] = np.nan_to_num(np.frombuffer(column.values, dtype=np.float64))
    whole = np.sum(list(stacked.values()), axis=0)
    cut_top(panel, whole, span)
    panel.top = panel.top or 1.05 * float(whole.max())
    kept = thin.kept(whole)
    at = [moments[number] for number in kept.tolist()]
    for number, (name, values) in enumerate(stacked.items()):
        words = name.replace("_", " ")
        panel.curves.append(Curve(run, words, at, rounded(values[kept]), number, style="area", group=words))
    return panel


def mapping(value: object) -> dict[str, Any]:
    """What should be an object of JSON, and is nothing where it is not."""
    return value if isinstance(value, dict) else {}


def score(values: dict[str, Any], task: str, key: str) -> float | None:
    """Of an eval line; None where it is not there or not defined."""
    found = mapping(mapping(values.get("tasks")).get(task)).get(key)
    return (
        float(found)
        if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
        else None
    )
