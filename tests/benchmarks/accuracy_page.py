"""docs/accuracy.md from the results: its tables stand between marks, the prose around them is written by hand.

A cell without a finished run shows "—"; a mean says of how many seeds it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tests.benchmarks.accuracy_matrix import (
    Run,
    ablation_runs,
    final_runs,
    last30_runs,
    live_runs,
    time_runs,
    trials,
)
from tests.benchmarks.accuracy_results import Figures, Results
from tests.benchmarks.accuracy_settings import (
    ABLATIONS,
    BASE,
    KNOBS,
    PUBLISHED_DIN,
    RANKERS,
    TASKS,
    TRIALS,
    run_file,
    settings_of,
)

NONE = "—"
PUBLISHED = (
    ("no model: user mean + item mean", "—", ".7780", NONE),
    ("DeepFM", "30", ".7915", ".5484"),
    ("GRU4Rec", "30", ".7926", ".5453"),
    ("AutoInt", "30", ".7929", ".5453"),
    ("DCNv2", "30", ".7931", ".5464"),
    ("SASRec", "30", ".7934", ".5460"),
    ("DIN", "30", ".7962", ".5425"),
    ("SIM", "30", ".7992", ".5387"),
    ("ReLLa, 13-billion-parameter language model", "30", ".8033", ".5362"),
)
SAMPLING_ERROR = 0.0014


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
    return (
        f"{len(results.lines)} runs are finished, {days[0]} to {days[-1]}, {hours:.1f} hours of training, by "
        f"the code of {', '.join(codes)}."
    )


def main_table(results: Results) -> str:
    """Published figures first, then ours."""
    rows = [[f"*{name}*", "", "", seen, auc, loss] for name, seen, auc, loss in PUBLISHED]
    for ranker in RANKERS:
        rows.append(_final_row(ranker, ranker, final_runs(ranker, results), results))
    rows.append(_final_row("tokenformer", "tokenformer, last 30", last30_runs(results), results))
    return table(["ranker", "dense parameters", "valid AUC", "history", "test AUC", "test log loss"], rows)


def _final_row(ranker: str, name: str, runs: Sequence[Run], results: Results) -> list[str]:
    found = finished(runs, results)
    tried, _ = trials(ranker, results)
    tried_lines = finished(tried, results)
    if not runs and tried_lines and name == ranker:  # tuning goes on: the validation split alone
        best = max(tried_lines, key=lambda line: line["held_out"]["auc"])
        note = f"{auc_of(best['held_out'])} (best of {len(tried_lines)} of {TRIALS} trials)"
        return [name, count(best["dense_parameters"]), note, seen_by(best["settings"]), NONE, NONE]
    if not found:
        return [name, NONE, NONE, NONE, NONE, NONE]
    return [
        f"**{name}**",
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
                minutes(mean(line["seconds"] for line in found)) if found else NONE,
            ]
        )
    heads = ["ranker", "NE", "AUC", "calibration", "AUC after", "calibration after", "seeds apart", "minutes"]
    return table(heads, rows)


def time_table(results: Results) -> str:
    """Minutes of training, evaluations left out, until the first evaluation that reached the mark."""
    rows = []
    for ranker in RANKERS:
        found = finished(time_runs(ranker, results), results)
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


def ablation_table(results: Results) -> str:
    """Seed by seed against TokenFormer's final runs: the same first weights and batches where shapes allow."""
    base = {line["seed"]: line for line in finished(final_runs("tokenformer", results), results)}
    rows = [["", "as tuned (2F2S)", mean_of(list(base.values()), "test", "auc"), "", ""]]
    for name, variants in ABLATIONS.items():
        runs = ablation_runs(name, results)
        for variant in variants:
            found = finished(runs.get(variant, []), results)
            apart = differences(found, base)
            cost = [line["seconds"] / base[line["seed"]]["seconds"] for line in found if line["seed"] in base]
            rows.append(
                [name, variant, mean_of(found, "test", "auc"), permille(apart), f"{mean(cost):.2f}" if cost else NONE]
            )
    return table(["", "TokenFormer", "test AUC", "difference, ‰", "time"], rows)


def claims_table(results: Results) -> str:
    """The paper's claims, and what these runs say of them."""
    base = {line["seed"]: line for line in finished(final_runs("tokenformer", results), results)}
    found = {
        row: differences(finished(runs, results), base)
        for name in ABLATIONS
        for row, runs in ablation_runs(name, results).items()
    }
    no_nlir, no_bfts, neither = (found.get(row, []) for row in ("NLIR off", "BFTS off (4F)", "both off"))
    parts = [a + b - c for a, b, c in zip(no_nlir, no_bfts, neither, strict=False)]
    claims = (
        ("NLIR helps (+4.87 ‰ over the plain Transformer)", verdict([-x for x in no_nlir])),
        ("BFTS helps (2F2S over 4F: +0.85 ‰)", verdict([-x for x in no_bfts])),
        ("both help (+8.15 ‰)", verdict([-x for x in neither])),
        ("together less than their sum", verdict([-x for x in parts])),
        ("3F1S is behind 2F2S (.64 ‰)", verdict([-x for x in found.get("3F1S", [])])),
        ("1F3S is behind 2F2S (.80 ‰)", verdict([-x for x in found.get("1F3S", [])])),
        ("4S collapses (−36 ‰)", verdict([-x for x in found.get("4S", [])], 0.01)),
    )
    return table(["claim (the paper's figures are on other data)", "here"], [list(claim) for claim in claims])


def verdict(gains: Sequence[float], at_least: float = 0.0) -> str:
    """gains: one a seed, positive where the claim holds. What lies within twice their spread is not decided."""
    if not gains:
        return NONE
    found = permille(gains)
    if len(gains) < 2:
        return f"one seed says nothing yet ({found})"
    if mean(gains) > max(at_least, 2 * stdev(gains)):
        return f"holds ({found})"
    return f"does not hold ({found})" if mean(gains) < -2 * stdev(gains) else f"not seen ({found})"


def finished(runs: Sequence[Run], results: Results) -> list[Figures]:
    """Their lines, of those that are done; where the test was asked for, with it."""
    lines = [(run, results.get(*run.key)) for run in runs]
    return [line for run, line in lines if line is not None and (line["test"] is not None or not run.test)]


def differences(found: Sequence[Figures], base: dict[int, Figures]) -> list[float]:
    """Of test AUC, seed by seed."""
    return [line["test"]["auc"] - base[line["seed"]]["test"]["auc"] for line in found if line["seed"] in base]


def mean_of(lines: Sequence[Figures], split: str, score: str, digits: int = 5) -> str:
    """Mean ± standard deviation, and of how many seeds."""
    values = [line[split][score] for line in lines if line.get(split)]
    if not values:
        return NONE
    spread = f" ± {short(stdev(values), digits)}" if len(values) > 1 else ""
    return f"{short(mean(values), digits)}{spread} ({len(values)})"


def permille(values: Sequence[float]) -> str:
    if not values:
        return NONE
    spread = f" ± {1000 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{1000 * mean(values):+.2f}{spread} ({len(values)})"


def short(value: float, digits: int) -> str:
    """.79812, as everybody writes it."""
    return f"{value:.{digits}f}".removeprefix("0")


def auc_of(scores: Figures) -> str:
    return short(scores["auc"], 5)


def count(number: int) -> str:
    return f"{number:,}"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def value_of(settings: Any, name: str) -> str:
    return f"{settings[name]}"


def base_list(results: Results) -> str:
    """What all runs share."""
    return "\n".join(f"- `{name} = {value!r}`".replace("'", '"') for name, value in BASE.items())


def sizes_table(results: Results) -> str:
    """What makes their dense parameters comparable."""
    rows = [[ranker, ", ".join(f"`{k} = {v}`" for k, v in sizes.items()) or NONE] for ranker, sizes in RANKERS.items()]
    return table(["ranker", "beside what is shared"], rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in [heads, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


TABLES: dict[str, Callable[[Results], str]] = {
    "state": state,
    "table": main_table,
    "base": base_list,
    "sizes": sizes_table,
    "settings": settings_table,
    "tuning": tuning_table,
    "live": live_table,
    "time": time_table,
    "ablations": ablation_table,
    "claims": claims_table,
}
