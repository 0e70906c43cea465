"""Ablations of TokenFormer, what the paper claims of them, and its collapse: tables of docs/accuracy.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from tests.benchmarks.accuracy_cells import NONE, finished, mean_of, permille, table
from tests.benchmarks.accuracy_matrix import ablation_runs, base_runs
from tests.benchmarks.accuracy_results import Figures, Results
from tests.benchmarks.accuracy_settings import ABLATIONS

# Arms of the paper's finding: {what it is called there: the ablation}.
ARMS = {
    "sequence only": "no static field, both off",
    "joint": "both off",
    "joint with NLIR": "BFTS off (4F)",
    "joint with BFTS": "NLIR off",
}


def ablation_table(results: Results) -> str:
    """Seed by seed against TokenFormer's final runs: the same first weights and batches where shapes allow."""
    base = {line["seed"]: line for line in finished(base_runs(), results)}
    rows = [["", "2F2S, windows 32, 16", mean_of(list(base.values()), "test", "auc"), ""]]
    for name, variants in ABLATIONS.items():
        runs = ablation_runs(name)
        for variant in variants:
            found = finished(runs.get(variant, []), results)
            apart = differences(found, base)
            rows.append([name, variant, mean_of(found, "test", "auc"), permille(apart)])
    return table(["", "TokenFormer", "test AUC", "difference, ‰"], rows)


def claims_table(results: Results) -> str:
    """The paper's claims, and what these runs say of them."""
    of = {row: runs for name in ABLATIONS for row, runs in ablation_runs(name).items()} | {"2F2S": base_runs()}
    auc = {row: {line["seed"]: line["test"]["auc"] for line in finished(runs, results)} for row, runs in of.items()}

    def over(row: str, other: str) -> dict[int, float]:
        """Gain of a row over another, seed by seed."""
        return {seed: auc[row][seed] - auc[other][seed] for seed in auc[row] if seed in auc[other]}

    nlir, bfts = over("BFTS off (4F)", "both off"), over("NLIR off", "both off")
    both = over("2F2S", "both off")
    parts = {seed: nlir[seed] + bfts[seed] - both[seed] for seed in both if seed in nlir and seed in bfts}
    claims = (
        ("NLIR alone helps", "+4.87", verdict(nlir)),
        ("BFTS alone helps", "+4.91", verdict(bfts)),
        ("both help", "+8.15", verdict(both)),
        ("together less than the sum of each alone", "1.63", verdict(parts)),
        ("2F2S over 4F", "+.85", verdict(over("2F2S", "BFTS off (4F)"))),
        ("3F1S over 4F", "+.21", verdict(over("3F1S", "BFTS off (4F)"))),
        ("1F3S over 4F", "+.05", verdict(over("1F3S", "BFTS off (4F)"))),
        ("4S collapses: 4F over it", "+36", verdict(over("BFTS off (4F)", "4S"), 0.01)),
    )
    return table(["claim", "paper, ‰ (other data)", "here, ‰"], [list(claim) for claim in claims])


def collapse_table(results: Results) -> str:
    """Arms as in docs/collapse.md, of the runs of the ablations."""
    rows = []
    of = {row: runs for name in ABLATIONS for row, runs in ablation_runs(name).items()}
    arms = {**{arm: of[row] for arm, row in ARMS.items()}, "TokenFormer (both)": base_runs()}
    for arm, runs in arms.items():
        looks = [line["collapse"] for line in finished(runs, results) if line.get("collapse")]
        of_kind = [[look["effective_rank"].get(kind) for look in looks] for kind in ("sequence", "field")]
        ranks = [layers([values for values in found if values]) for found in of_kind]
        on_fields = [[100 * share for share in look["on_fields"]] for look in looks if of_kind[1][0]]
        top = [look["effective_rank"]["sequence"][-1] for look in looks]
        extremes = f"{min(top):.1f}–{max(top):.1f} ({len(top)})" if top else NONE
        rows.append([arm, ranks[0], extremes, ranks[1], layers(on_fields)])
    heads = ["arm", "sequence tokens, layers 0–4", "top layer, seeds", "field tokens, layers 0–4", "on fields, %"]
    return table(heads, rows)


def layers(of_seeds: Sequence[Sequence[float | None]]) -> str:
    """Means over the seeds, layer by layer."""
    if not of_seeds:
        return NONE
    values = zip(*of_seeds, strict=True)
    return " ".join(NONE if None in layer else f"{mean(v for v in layer if v is not None):.1f}" for layer in values)


def verdict(gains: Mapping[int, float], at_least: float = 0.0) -> str:
    """gains: of each seed, positive where the claim holds. What lies within twice their spread is not decided."""
    if not gains:
        return NONE
    values = list(gains.values())
    found = permille(values)
    if len(values) < 2:
        return f"{found}: one seed decides nothing"
    if mean(values) > max(at_least, 2 * stdev(values)):
        return f"{found}: **holds**"
    return f"{found}: **the opposite**" if mean(values) < -2 * stdev(values) else f"{found}: not seen"


def differences(found: Sequence[Figures], base: dict[int, Figures]) -> list[float]:
    """Of test AUC, seed by seed."""
    return [line["test"]["auc"] - base[line["seed"]]["test"]["auc"] for line in found if line["seed"] in base]
