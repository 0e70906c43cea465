"""The rankers' sizes, counted, not timed: dense parameters, and multiplications of a row's forward pass, each over
TokenFormer's at the same width.

    python -m tests.benchmarks.ranker_sizes [--quick] [--dim 128]
"""

from __future__ import annotations

import argparse
from typing import Any, Literal

import torch

from model.config import Model
from model.inputs import FieldSpec, HistorySpec, InputSpec
from model.rankers import build_ranker, check_ranker
from tests.benchmarks.harness import finish, show, table
from trainer.row_cost import row_cost
from trainer.row_work import WORK

FIELDS, WIDTH, LENGTHS = 20, 32, (100, 1000)
CONTESTANTS: dict[str, dict[str, Any]] = {
    "tokenformer": {},
    "transformer": {},
    "hstu": {},
    "din": {},
    "dcnv2": {},
    "dcnv2, rank 64": {"dcnv2": {"rank": 64}},
    "onetrans": {},
    "hyformer, full": {"hyformer": {"encoder": "full"}},
    "hyformer, recent": {"hyformer": {"encoder": "recent"}},
    "hyformer, swiglu": {"hyformer": {"encoder": "swiglu"}},
}


def spec_of(supervision: Literal["candidates", "history"]) -> InputSpec:
    """One history with an action; one candidate."""
    event = tuple(FieldSpec(f"event_{i}", WIDTH) for i in range(3))
    names = tuple(field.name for field in event)
    return InputSpec(
        static=tuple(FieldSpec(f"field_{i}", WIDTH) for i in range(FIELDS)),
        event=event,
        action=(FieldSpec("action", WIDTH),),
        histories=(HistorySpec("events", names, ("action",), LENGTHS[-1]),),
        candidate=names,
        tasks=("click",),
        supervision=supervision,
        supervised_history="events" if supervision == "history" else "",
    )


def sizes(config: Model) -> dict[str, float]:
    """{parameters, and multiplications by supervision and length}."""
    with torch.device("meta"):
        parameters = build_ranker(spec_of("candidates"), config).parameters()
    found = {"parameters": float(sum(parameter.numel() for parameter in parameters))}
    for supervision in ("candidates", "history"):
        if check_ranker(spec_of(supervision), config):  # type: ignore[arg-type]
            continue  # hyformer has candidates only
        spec = spec_of(supervision)  # type: ignore[arg-type]
        cost = row_cost(spec, config)
        for length in LENGTHS:
            fitted = cost.fixed + cost.linear * length + cost.quadratic * length**2
            exact = WORK[config.kind](spec, config, length) if config.kind in WORK else fitted
            found[f"{supervision}, {length} events"] = exact
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="nothing here takes long: the same")
    parser.add_argument("--dim", type=int, default=64)
    dim = parser.parse_args().dim
    show("shape", {"dim": dim, "fields": FIELDS, "event fields": 3, "embedding width": WIDTH, "candidates": 1})
    found = {
        name: sizes(Model(kind=name.split(",")[0], dim=dim, **own))  # type: ignore[arg-type]
        for name, own in CONTESTANTS.items()
    }
    base = found["tokenformer"]
    rows = [
        [
            name,
            *(
                f"{counts[key] / 1e6:,.2f} M (× {counts[key] / base[key]:.2f})" if key in counts else "—"
                for key in base
            ),
        ]
        for name, counts in found.items()
    ]
    table(["ranker", *base], rows)
    ratios = {
        f"{name.replace(', ', '_').replace(' ', '')}_{key.replace(', ', '_').replace(' ', '_')}": value / base[key]
        for name, counts in found.items()
        for key, value in counts.items()
        if name != "tokenformer"
    }
    finish("ranker_sizes", ratios, threads=1)


if __name__ == "__main__":
    main()
