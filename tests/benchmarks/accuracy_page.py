"""docs/accuracy.md from the results: its tables stand between marks, the prose around them is written by hand.

A cell without a finished run shows "—"; a mean says of how many seeds it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.accuracy_cells import NONE, auc_of, count, finished, mean_of, minutes, table
from tests.benchmarks.accuracy_claims import ablation_table, claims_table, collapse_table
from tests.benchmarks.accuracy_matrix import (
    Run,
    ablation_runs,
    base_runs,
    final_runs,
    last30_runs,
    live_runs,
    rate_runs,
    request_runs,
    three_runs,
    time_run,
    trials,
)
from tests.benchmarks.accuracy_results import Results
from tests.benchmarks.accuracy_settings import (
    BASE,
    KNOBS,
    PUBLISHED_DIN,
    RANKERS,
    RATES,
    SUPERVISED_BY_REQUEST,
    TASKS,
    TRIALS,
    run_file,
    settings_of,
)

PUBLISHED = (
    ("no model: user mean + item mean", ".7780", NONE),
    ("DeepFM", ".7915", ".5484"),
    ("GRU4Rec", ".7926", ".5453"),
    ("AutoInt", ".7929", ".5453"),
    ("DCNv2", ".7931", ".5464"),
    ("SASRec", ".7934", ".5460"),
    ("DIN", ".7962", ".5425"),
    ("SIM", ".7992", ".5387"),
    ("ReLLa, 13-billion-parameter language model", ".8033", ".5362"),
)


def write(page: Path, results: Results) -> None:
    """Fills what stands between `<!-- accuracy: NAME -->` and `<!-- /accuracy: NAME -->`, and nothing else."""
    text = page.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        mark = re.compile(rf"(<!-- accuracy: {name} -->\n).*?(<!-- /accuracy: {name} -->)", re.DOTALL)
        if len(mark.findall(text)) != 1:
            raise ValueError(f"{page.name} → has the marks of '{name}' once → restore them")
        filled = make(results)
        text = mark.sub(lambda found, filled=filled: f"{found[1]}{filled}\n{found[2]}", text)  # type: ignore[misc]
    page.write_text(text, encoding="utf-8")


def state(results: Results) -> str:
    """How far it is."""
    if not results.lines:
        return "No run is finished yet."
    codes = sorted({line["code"] for line in results.lines})
    days = sorted(line["date"][:10] for line in results.lines)
    hours = sum(line["seconds"] for line in results.lines) / 3600
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    return (
        f"{len(results.lines)} runs are finished, {when}, {hours:.1f} hours of training, by "
        f"the code of {', '.join(codes)}."
    )


def last30_table(results: Results) -> str:
    """Published figures first, then ours."""
    rows = [[f"*{name}*", "", "", auc, loss, ""] for name, auc, loss in PUBLISHED]
    wanted = [(ranker, last30_runs(ranker)) for ranker in RANKERS]
    wanted += [(f"{ranker}, by request", request_runs(ranker)) for ranker in RANKERS]
    for name, runs in wanted:
        found = finished(runs, results)
        if "request" in name and (not found or runs[0].ranker in SUPERVISED_BY_REQUEST):
            continue
        rows.append(
            [
                f"**{name}**" if found else name,
                count(found[0]["dense_parameters"]) if found else NONE,
                mean_of(found, "held_out", "auc"),
                mean_of(found, "test", "auc"),
                mean_of(found, "test", "loss"),
                mean_of(found, "test", "calibration", 3),
            ]
        )
    heads = ["ranker", "dense parameters", "valid AUC", "test AUC", "test log loss", "calibration"]
    return table(heads, rows)


def rates_table(results: Results) -> str:
    """One seed, the validation split."""
    rows = []
    for ranker in RANKERS:
        cells = [results.get(*run.key) for run in (last30_runs(ranker)[0], *rate_runs(ranker))]
        rows.append([ranker, *(auc_of(line["held_out"]) if line else NONE for line in cells)])
    return table(["ranker", f"{BASE['optim.lr']:g} (shared)", *(f"{rate:g}" for rate in RATES)], rows)


def three_table(results: Results) -> str:
    """What two more epochs bring."""
    rows = []
    wanted = [(ranker, "last30", last30_runs(ranker)) for ranker in RANKERS]
    wanted += [("tokenformer", "long", base_runs()), ("transformer", "long", ablation_runs("parts")["both off"])]
    for ranker, name, once in wanted:
        one, three = finished(once, results), finished(three_runs(ranker, name), results)
        history = seen_by(once[0].settings)
        cells = [mean_of(one, "test", "auc")]
        cells += [
            mean_of(three, split, score) for split, score in (("held_out", "auc"), ("test", "auc"), ("test", "loss"))
        ]
        rows.append([f"**{ranker}**" if three else ranker, history, *cells])
    heads = ["ranker", "history", "test AUC, one epoch", "valid AUC", "test AUC", "test log loss"]
    return table(heads, rows)


def long_table(results: Results) -> str:
    """After tuning; until then what tuning has found so far."""
    rows = [_final_row(ranker, final_runs(ranker, results), results) for ranker in RANKERS]
    return table(["ranker", "dense parameters", "valid AUC", "history", "test AUC", "test log loss"], rows)


def _final_row(ranker: str, runs: Sequence[Run], results: Results) -> list[str]:
    found = finished(runs, results)
    tried, _ = trials(ranker, results)
    tried_lines = finished(tried, results)
    if not runs and tried_lines:  # tuning goes on: the validation split alone
        best = max(tried_lines, key=lambda line: line["held_out"]["auc"])
        note = f"{auc_of(best['held_out'])} (best of {len(tried_lines)} of {TRIALS} trials)"
        return [ranker, count(best["dense_parameters"]), note, seen_by(best["settings"]), NONE, NONE]
    if not found:
        return [ranker, NONE, NONE, NONE, NONE, NONE]
    return [
        f"**{ranker}**",
        count(found[0]["dense_parameters"]),
        mean_of(found, "held_out", "auc"),
        seen_by(found[0]["settings"]),
        mean_of(found, "test", "auc"),
        mean_of(found, "test", "loss"),
    ]


def seen_by(settings: dict[str, Any]) -> str:
    """How many earlier ratings a rating sees at most."""
    content = run_file(settings)
    length = content["schema"]["histories"]["ratings"]["max_length"]
    if content["schema"]["supervision"] == "candidates":
        return str(length)
    prepare = content["data"]["prepare"]
    return str(prepare["context_events"] + prepare["supervised_events"] - 1)


def tuning_table(results: Results) -> str:
    """What was tried, and what it gave on the validation split."""
    rows = []
    for ranker in RANKERS:
        tried, best = trials(ranker, results)
        for run in tried:
            line = results.get(*run.key)
            name = run.name.partition(": ")[2]
            kept = "**" if best is not None and run.key == best.key else ""
            auc = auc_of(line["held_out"]) if line else NONE
            rows.append([ranker, f"{kept}{name}{kept}", auc, minutes(line["seconds"]) if line else NONE])
    return table(["ranker", "trial", "valid AUC", "minutes"], rows)


def settings_table(results: Results) -> str:
    """Where tuning begins, and what it came to."""
    names = list(KNOBS)
    rows = [["*all, at first*", *(value_of(settings_of("tokenformer"), name) for name in names)]]
    for ranker in RANKERS:
        best = trials(ranker, results)[1]
        rows.append([ranker, *(value_of(best.settings, name) if best else NONE for name in names)])
    return table(["ranker", *(f"`{name}`" for name in names)], rows)


def live_table(results: Results) -> str:
    """One pass; the scores of the pass itself are of predictions made before each update."""
    rows = []
    for ranker in RANKERS:
        found = finished(live_runs(ranker), results)
        apart = [line["difference"] for line in found if line.get("difference") is not None]
        rows.append(
            [
                ranker,
                mean_of(found, "progressive", "ne", 4),
                mean_of(found, "progressive", "auc", 4),
                mean_of(found, "progressive", "calibration", 3),
                mean_of(found, "held_out", "auc", 4),
                mean_of(found, "held_out", "calibration", 3),
                f"{apart[0]:.1%}" if apart else NONE,
            ]
        )
    heads = ["ranker", "NE", "AUC", "calibration", "AUC after", "calibration after", "seeds apart"]
    return table(heads, rows)


def time_table(results: Results) -> str:
    """Minutes of training, evaluations left out, until the first evaluation that reached the mark."""
    rows = []
    for ranker in RANKERS:
        found = finished([time_run(ranker)], results)
        if not found:
            rows.append([ranker, NONE, NONE, NONE, NONE])
            continue
        curve = found[0].get("curve", [])
        reached = next(((examples, seconds) for examples, seconds, auc in curve if auc >= PUBLISHED_DIN), None)
        best = max(auc for _, _, auc in curve)
        speed = f"{found[0]['examples'] / TASKS / found[0]['seconds']:,.0f}"
        at = [minutes(reached[1]), f"{reached[0] // TASKS:,}"] if reached else ["not reached", NONE]
        rows.append([ranker, *at, f"{best:.4f}".lstrip("0"), speed])
    return table(["ranker", f"minutes to {PUBLISHED_DIN:.4f}", "ratings", "best", "ratings a second"], rows)


def value_of(settings: Any, name: str) -> str:
    return f"{settings[name]}"


def base_list(results: Results) -> str:
    """What all runs share."""
    return "\n".join(f"- `{name} = {value!r}`".replace("'", '"') for name, value in BASE.items())


def sizes_table(results: Results) -> str:
    """What makes their dense parameters comparable."""
    rows = [[ranker, ", ".join(f"`{k} = {v}`" for k, v in sizes.items()) or NONE] for ranker, sizes in RANKERS.items()]
    return table(["ranker", "beside what is shared"], rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "state": state,
    "last30": last30_table,
    "rates": rates_table,
    "three": three_table,
    "long": long_table,
    "base": base_list,
    "sizes": sizes_table,
    "settings": settings_table,
    "tuning": tuning_table,
    "live": live_table,
    "time": time_table,
    "ablations": ablation_table,
    "claims": claims_table,
    "collapse": collapse_table,
}
